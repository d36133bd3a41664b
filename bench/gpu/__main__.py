"""Build, test and measure on this machine's GPU: `python -m bench.gpu [--parts tests sanitizer bench] [--out FOLDER]`.

FOLDER/<name of the GPU>.json and .md are written anew whenever something is known, so that a run that is cut short
leaves what it has. Build, tests and sanitizer give the exit status; a measurement never fails a run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from bench.gpu import sanitizer, suite
from bench.gpu.command import ROOT, python
from bench.gpu.machine import describe, file_name
from bench.gpu.report import markdown
from bench.gpu.supervisor import Supervisor
from bench.gpu.units import Unit, batches

SECONDS = 465  # less than eight minutes, with what starting and writing take
# What is kept for each part while those before it run.
RESERVED = {"build": 60, "tests": 150, "sanitizer": 60, "bench": 150}
PARTS = tuple(RESERVED)
CHECKS: dict[str, Callable[[str, float], dict[str, object]]] = {
    "build": suite.build,
    "tests": suite.run_tests,
    "sanitizer": sanitizer.check,
}


class Results:
    """What a run has so far, on disk.

    Args:
        folder: where the two files are written.
        where: the machine, see `machine.describe`.
    """

    def __init__(self, folder: Path, where: Mapping[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{file_name(str(where['device']))}.json"
        self._where = where
        self._parts: dict[str, dict[str, Any]] = self._earlier_parts()

    def _earlier_parts(self) -> dict[str, dict[str, Any]]:
        """Parts of an earlier run of the same sources on the same machine."""
        if not self._path.is_file() or self._where["dirty"] is not False:
            return {}
        earlier = json.loads(self._path.read_text())
        same = {**earlier["where"], "date": None} == {**self._where, "date": None}
        return dict(earlier["parts"]) if same else {}

    def put(self, name: str, part: dict[str, Any]) -> None:
        """Put a part in the place of what was there, and write the files."""
        self._parts[name] = part
        self._path.write_text(json.dumps(self._everything(), indent=1) + "\n")
        self._path.with_suffix(".md").write_text(self.markdown())

    def markdown(self) -> str:
        """The report."""
        return markdown(self._everything())

    def _everything(self) -> dict[str, object]:
        return {"where": self._where, "parts": self._parts}


def limit_of(part: str, chosen: Sequence[str], left: float) -> float:
    """Seconds that a part may take of those that are left: all that is not kept for the parts after it."""
    later = [name for name in chosen if PARTS.index(name) > PARTS.index(part)]
    return max(left - sum(RESERVED[name] for name in later), 0)


def bench(device: str, limit: float, wanted: Sequence[Sequence[Unit]], results: Results) -> None:
    """Measure batches of units for `limit` seconds at most; what is known is written down at once."""
    start = monotonic()
    measurements: dict[tuple[str, str, str], dict[str, Any]] = {}

    def record(unit: Unit, figures: Mapping[str, object]) -> None:
        place = unit.case, unit.dtype, unit.contender
        names = dict(zip(("case", "dtype", "contender"), place, strict=True))
        if unit.parts == ("launches",) and "error" in figures:  # the times may be there
            figures = {"launches_error": figures["error"]}
        measurements.setdefault(place, names).update(figures)
        results.put("bench", {"ok": None, "seconds": monotonic() - start, "measurements": list(measurements.values())})

    supervisor = Supervisor(python("-m", "bench.gpu.worker", device), record, deadline=start + limit)
    for batch in wanted:
        supervisor.run(batch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Build, test and measure on a GPU.")
    parser.add_argument("--parts", nargs="+", choices=PARTS[1:], default=PARTS[1:], help="the build comes first always")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything together, default {SECONDS}")
    parser.add_argument("--commit", help="where the sources are no checkout of git")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    chosen = parser.parse_args(arguments)
    device: str = chosen.device
    if device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no CUDA device here", file=sys.stderr)
        return 2

    end = monotonic() + chosen.seconds
    parts = [part for part in PARTS if part == "build" or part in chosen.parts]

    def check(name: str) -> dict[str, Any]:
        start = monotonic()
        limit = limit_of(name, parts, end - start)
        print(f"{name}, at most {limit:.0f} s", flush=True)
        outcome = CHECKS[name](device, limit)
        if outcome["ok"] is False:
            print(f"{name} FAILED: {outcome.get('error')}", flush=True)
        return {**outcome, "seconds": monotonic() - start}

    built = check("build")
    results = Results(chosen.out, describe(device, chosen.commit))  # of what was built, too
    results.put("build", built)
    passed = built["ok"] is True
    for name in parts[1:] if passed else ():
        if name == "bench":
            limit = end - monotonic()
            print(f"bench, at most {limit:.0f} s", flush=True)
            bench(device, limit, batches(), results)
        else:
            outcome = check(name)
            results.put(name, outcome)
            passed = passed and outcome["ok"] is not False
    print(results.markdown())
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
