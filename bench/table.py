"""Measure the speed table and its picture, or check it: `python -m bench.table [--quick] [--cases CASE ...] [--check]`.

What is measured stands in `rows.py`, and how in `measure.py`, `interleave.py` and `memory.py`. pytest-benchmark
finishes one contender before it starts the next, so its ratios hold the drift of the machine; it serves for
absolute figures (`bench_step.py`), not for this table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.cases import CASES, GRID_CASES
from bench.check import OK, WORSE, Baseline, verdicts
from bench.contenders import why_unavailable
from bench.machine import all_cores, machine
from bench.measure import Effort, Result, measure
from bench.memory import Memory, measure_memory
from bench.report import markdown
from bench.rows import DTYPES, MEMORY_CASE, Group, groups_of, measurable

RESULTS = Path(__file__).parent / "results"
RUNS = Path(__file__).parents[1] / "runs"
BASELINE = "cpu"


def missing(groups: Iterable[Group]) -> dict[tuple[str, str], str]:
    """Who cannot take part with which dtype, and why."""
    places = dict.fromkeys(
        (name, row.dtype) for group in groups for row in group for name in (row.contender, row.against)
    )
    reasons = {place: why_unavailable(place[0], DTYPES[place[1]]) for place in places}
    return {place: reason for place, reason in reasons.items() if reason is not None}


def by_name(missing: dict[tuple[str, str], str]) -> dict[str, str]:
    """The same for people, who need not be told of each dtype of what runs with none."""
    return {
        contender if dtype == "float32" else f"{contender} in {dtype}": reason
        for (contender, dtype), reason in missing.items()
        if dtype == "float32" or missing.get((contender, "float32")) != reason
    }


def measure_memories(results: Sequence[Result], left_out: dict[str, str]) -> list[Memory]:
    """The memory of each contender that was measured on `MEMORY_CASE`; what fails is added to `left_out`."""
    rows = [result.row for result in results if (result.row.case, result.row.dtype) == (MEMORY_CASE, "float32")]
    memories = []
    for contender in dict.fromkeys(row.contender for row in rows):
        try:
            memories.append(measure_memory(contender, MEMORY_CASE, max(result.threads for result in results)))
        except RuntimeError as error:
            left_out[f"memory of {contender}"] = str(error)
    return memories


def make_table(cases: Sequence[str], threads: Sequence[int], effort: Effort, path: Path) -> None:
    """Measure, print the table, and write it with figures and picture; `path` has no suffix."""
    where = machine()
    groups = groups_of(cases)
    absent = missing(groups)
    results = [
        result for group in measurable(groups, absent) for count in threads for result in measure(group, count, effort)
    ]
    left_out = by_name(absent)
    memories = measure_memories(results, left_out)
    path.parent.mkdir(parents=True, exist_ok=True)
    on_curves = [result for result in results if result.row.case in GRID_CASES]
    if on_curves:
        try:
            from bench.picture import draw_curves
        except ModuleNotFoundError as error:
            left_out["the picture"] = f"{type(error).__name__}: {error}"
        else:
            draw_curves(path.with_suffix(".png"), f"{where['cpu']}, torch {where['torch']}", on_curves)
    table = markdown(results, memories, left_out, where)
    print(table)
    parts = {"results": [asdict(result) for result in results], "memory": [asdict(memory) for memory in memories]}
    path.with_suffix(".json").write_text(json.dumps({"where": where, "left_out": left_out, **parts}, indent=1) + "\n")
    path.with_suffix(".md").write_text(table + "\n")


def check(cases: Sequence[str], threads: Sequence[int], effort: Effort, baseline: Baseline) -> int:
    """Measure the baseline's rows again and print how they have changed.

    Returns:
        1 if a row has become worse, 2 if one could not be measured or judged or there was none, else 0.
    """
    where = machine()
    for difference in baseline.differences(where):
        print(f"The baseline is of another machine: {difference}")
    wanted = [(row, count) for row, count in baseline.ratios if row.case in cases and count in threads]
    absent = missing([[row] for row, _ in wanted])
    for name, reason in by_name(absent).items():
        print(f"Not measured: {name} ({reason}).")
    found = set()
    for row, count in wanted:
        for group in measurable([[row]], absent):
            for verdict, line in verdicts(measure(group, count, effort), baseline):
                print(line, flush=True)
                found.add(verdict)
    if not wanted:
        print("The baseline has no such rows.")
    if WORSE in found:
        return 1
    return 2 if absent or found != {OK} else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for; returns the exit status, which is that of `check` or 0."""
    everything = [*CASES, *GRID_CASES]
    parser = argparse.ArgumentParser(prog="python -m bench.table", description="The speed table.")
    parser.add_argument("--cases", nargs="+", choices=everything, default=everything, metavar="CASE",
                        help=f"default all: {', '.join(everything)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="at least so many a row, default 100")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, all_cores()}))
    parser.add_argument("--quick", action="store_true", help="8 rounds in one block: a smoke test")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--out", metavar="NAME", help="write bench/results/NAME.{json,md,png}, not runs/bench.*")
    kind.add_argument("--check", nargs="?", const=BASELINE, metavar="NAME",
                      help=f"compare with bench/results/NAME.json, default {BASELINE}")  # fmt: skip
    chosen = parser.parse_args(arguments)
    rounds = chosen.rounds or (8 if chosen.quick else 100)
    blocks, seconds = (1, 0.1) if chosen.quick else (4, 0.75)
    effort = Effort(-(-rounds // blocks), seconds, blocks)
    if chosen.check is None:
        make_table(chosen.cases, chosen.threads, effort, RESULTS / chosen.out if chosen.out else RUNS / "bench")
        return 0
    try:
        baseline = Baseline.read(RESULTS / f"{chosen.check}.json")
    except FileNotFoundError as error:
        parser.error(str(error))
    return check(chosen.cases, chosen.threads, effort, baseline)


if __name__ == "__main__":
    sys.exit(main())
