"""Measures rows that take turns.

Besides the contenders and the one they are compared with, a second copy of that one takes part as a control: its
ratio to itself shows how much of a difference is noise. Measurements have several blocks. Each makes its tensors
anew, in another order, because where memory happens to lie can favour one contender by some percent, and times a
large copy beside them, because the bandwidth of a shared machine changes within seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cases import parameter_count, setup
from bench.interleave import Spread, copy_bandwidths, paired_ratios, time_in_turns
from bench.rows import Row


@dataclass(frozen=True)
class Effort:
    """How long a measurement takes: `blocks` of at least `rounds` rounds and `seconds` each."""

    rounds: int
    seconds: float
    blocks: int


@dataclass(frozen=True)
class Result:
    """What was measured for a row; times are medians in milliseconds, bytes those that a step has to move."""

    row: Row
    threads: int
    rounds: int
    time_ms: float
    against_ms: float
    ratio: Spread
    control: Spread
    bytes_per_parameter: float
    gb_per_s: float
    copy_gb_per_s: float


def measure(rows: Sequence[Row], threads: int, effort: Effort) -> list[Result]:
    """Measure rows of one case, one dtype and one `against`, which all take turns."""
    case, dtype, against = rows[0].case, rows[0].torch_dtype, rows[0].against
    contenders = {row.contender: row.contender for row in rows} | {"against": against, "control": against}
    times: dict[str, list[int]] = {role: [] for role in contenders}
    step_bytes: dict[str, int] = {}
    copies: list[float] = []
    for block in range(effort.blocks):
        copies += copy_bandwidths(threads)
        roles = list(contenders)[:: -1 if block % 2 else 1]
        setups = {role: setup(case, contenders[role], dtype, threads) for role in roles}
        steps = {role: made.step for role, made in setups.items()}
        for role, samples in time_in_turns(steps, effort.rounds, effort.seconds).items():
            times[role] += samples
        for role, made in setups.items():
            made.check_values()
            step_bytes[role] = made.step_bytes()
        del setups, steps, made  # before the next block allocates: VGG16 takes 1.7 GB each
    median = {role: statistics.median(samples) for role, samples in times.items()}
    return [
        Result(
            row=row,
            threads=threads,
            rounds=len(times["against"]),
            time_ms=median[row.contender] / 1e6,
            against_ms=median["against"] / 1e6,
            ratio=Spread.of(paired_ratios(times[row.contender], times["against"])),
            control=Spread.of(paired_ratios(times["control"], times["against"])),
            bytes_per_parameter=step_bytes[row.contender] / parameter_count(case),
            gb_per_s=step_bytes[row.contender] / median[row.contender],
            copy_gb_per_s=statistics.median(copies),
        )
        for row in rows
    ]
