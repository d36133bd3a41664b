"""Print the speed table: `python -m bench.table [--quick] [--cases ResNet-50 ...] [--out NAME]`.

Each row compares two contenders that take turns (see `interleave.py`), with a second copy of the
one compared against as a control: its ratio to itself shows how much of a difference is noise.
A row is measured in several blocks. Each makes its tensors anew, in another order, because where
memory happens to lie can favour one contender by some percent, and times a large copy beside them,
because the bandwidth of a shared machine changes within seconds.

pytest-benchmark finishes one contender before it starts the next, so its ratios hold this drift;
it serves for absolute figures (`bench_step.py`), not for this table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.cases import CASES, parameter_count, setup
from bench.contenders import why_unavailable
from bench.interleave import Spread, copy_bandwidths, paired_ratios, time_in_turns

RESULTS = Path(__file__).parent / "results"
BYTES_PER_PARAMETER = 20  # float32: read weight, gradient, momentum; write weight, momentum


@dataclass(frozen=True)
class Row:
    """One comparison; `aim` is the ratio to be reached, at most."""

    case: str
    contender: str
    against: str = "torch fused"
    aim: float | None = None


VARIANTS = (
    "native, frozen norms",
    "native, norm pass",
    "foreach",
    "torch foreach",
    "torch for-loop",
)
ROWS = (
    Row("VGG13-CIFAR", "native", aim=0.95),
    Row("ResNet-50", "native", aim=0.95),
    Row("VGG16", "native", aim=1.02),
    Row("DenseNet-121", "native", aim=0.75),
    Row("MobileNetV2", "native", aim=0.75),
    Row("160x64", "native", aim=0.6),
    Row("ResNet-50", "native", "reference", aim=0.35),
    # 16 instead of 20 bytes for each parameter; the random numbers cost arithmetic.
    *(
        Row(case, momentum, "native")
        for case in ("ResNet-50", "VGG16")
        for momentum in ("native, bfloat16 momentum", "native, nearest bfloat16 momentum")
    ),
    *(Row(case, variant) for case in ("ResNet-50", "160x64") for variant in VARIANTS),
)


@dataclass(frozen=True)
class Result:
    """What was measured for a row; times are medians in milliseconds."""

    row: Row
    threads: int
    rounds: int
    time_ms: float
    against_ms: float
    ratio: Spread
    control: Spread
    gb_per_s: float
    copy_gb_per_s: float


def measure(row: Row, threads: int, rounds: int, seconds: float, blocks: int) -> Result:
    """Measure one row in `blocks` of at least `rounds` rounds and `seconds` each."""
    contenders = {"ours": row.contender, "against": row.against, "control": row.against}
    times: dict[str, list[int]] = {role: [] for role in contenders}
    copies: list[float] = []
    for block in range(blocks):
        copies += copy_bandwidths(threads)
        roles = list(contenders)[:: -1 if block % 2 else 1]
        setups = {role: setup(row.case, contenders[role], threads=threads) for role in roles}
        steps = {role: made.step for role, made in setups.items()}
        for role, samples in time_in_turns(steps, rounds, seconds).items():
            times[role] += samples
        for made in setups.values():
            made.check_values()
        del setups, steps, made  # before the next block allocates: VGG16 takes 1.7 GB each
    median = {role: statistics.median(samples) for role, samples in times.items()}
    return Result(
        row=row,
        threads=threads,
        rounds=len(times["ours"]),
        time_ms=median["ours"] / 1e6,
        against_ms=median["against"] / 1e6,
        ratio=Spread.of(paired_ratios(times["ours"], times["against"])),
        control=Spread.of(paired_ratios(times["control"], times["against"])),
        gb_per_s=BYTES_PER_PARAMETER * parameter_count(row.case) / median["ours"],
        copy_gb_per_s=statistics.median(copies),
    )


def machine() -> dict[str, object]:
    """Say where a measurement was made: processor, versions, commit."""
    try:
        compiler = importlib.import_module("sasgd_fused._C").compiler
    except ImportError:
        compiler = None
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
    except OSError:
        commit = ""
    return {
        "cpu": _cpu_name(),
        "cores": all_cores(),
        "load average before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler of the extension": compiler,
        "commit": commit.strip() or None,
    }


def all_cores() -> int:
    """Count the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def markdown(results: Sequence[Result], left_out: dict[str, str], where: dict[str, object]) -> str:
    """Format results as a Markdown table; times under a millisecond in microseconds."""

    def time(milliseconds: float) -> str:
        return f"{milliseconds:.2f} ms" if milliseconds >= 1 else f"{milliseconds * 1e3:.0f} us"

    def spread(ratio: Spread) -> str:
        return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"

    def line(result: Result) -> str:
        row = result.row
        aim = ""
        if row.aim is not None:
            aim = f"{row.aim} ({'met' if result.ratio.median <= row.aim else 'missed'})"
        cells = (
            row.case, str(result.threads), row.contender, time(result.time_ms), row.against,
            time(result.against_ms), spread(result.ratio), aim, spread(result.control),
            f"{result.gb_per_s:.1f}", f"{result.copy_gb_per_s:.1f}",
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"

    head = (
        "| network | threads | contender | time | against | time | ratio [20 %, 80 %] | at most "
        "| against itself [20 %, 80 %] | GB/s at 20 bytes per parameter | GB/s of a copy |\n"
        "|---|---:|---|---:|---|---:|---:|---:|---:|---:|---:|"
    )
    notes = [f"Not measured: {name} ({reason})." for name, reason in left_out.items()]
    notes.append("; ".join(f"{key}: {value}" for key, value in where.items()))
    return "\n".join([head, *(line(result) for result in results), "", *notes])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows that are asked for, print the table and write it with `--out`."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description="The speed table.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
                        help=f"networks, default all: {', '.join(CASES)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="at least so many a row, default 100")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, all_cores()}))
    parser.add_argument("--quick", action="store_true", help="8 rounds in one block: a smoke test")
    parser.add_argument("--out", metavar="NAME", help="write bench/results/NAME.{json,md} as well")
    chosen = parser.parse_args(arguments)
    rounds = chosen.rounds or (8 if chosen.quick else 100)
    blocks, seconds = (1, 0.1) if chosen.quick else (4, 0.75)

    where = machine()
    rows = [row for row in ROWS if row.case in chosen.cases]
    names = sorted({name for row in rows for name in (row.contender, row.against)})
    left_out = {name: reason for name in names if (reason := why_unavailable(name))}
    results = []
    for row in rows:
        if row.contender in left_out or row.against in left_out:
            continue
        for threads in chosen.threads:
            results.append(measure(row, threads, -(-rounds // blocks), seconds, blocks))
    table = markdown(results, left_out, where)
    print(table)
    if chosen.out:
        RESULTS.mkdir(exist_ok=True)
        figures = {"where": where, "left_out": left_out, "results": [asdict(r) for r in results]}
        (RESULTS / f"{chosen.out}.json").write_text(json.dumps(figures, indent=1) + "\n")
        (RESULTS / f"{chosen.out}.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
