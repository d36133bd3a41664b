"""Measures rows that take turns, each group of them in a process that may die of it.

Besides the contenders and the one they are compared with, a second copy of that one takes part as a control: its
ratio to itself shows how much of a difference is noise. Measurements have several blocks. Each makes its tensors
anew, in another order, because where memory happens to lie can favour one contender by some percent, and times a
large copy beside them, because the bandwidth of a shared machine changes within seconds.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.cases import parameter_count, setup
from bench.child import CallFailed, Child, ProcessLost
from bench.clocks import clock_for, copy_bandwidths
from bench.contenders import why_unavailable
from bench.rows import DTYPES, Group, Row, available
from bench.turns import Spread, paired_ratios, time_in_turns


@dataclass(frozen=True)
class Effort:
    """How long a group is measured.

    Attributes:
        rounds: at least so many, in all blocks together.
        seconds: at least so long, likewise.
        blocks: in so many parts.
        limit_s: after so long it counts as hung.
    """

    rounds: int
    seconds: float
    blocks: int
    limit_s: float


@dataclass(frozen=True)
class Result:
    """What was measured for a row; times are medians, bytes those that a step has to move.

    Attributes:
        control: `against` compared with itself.
        host_us: what a call takes on the host, where that does not wait for the device.
    """

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
    host_us: float | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Result:
        """Makes a result of what `dataclasses.asdict` made of one."""
        spreads = {name: Spread(**fields[name]) for name in ("ratio", "control")}
        return cls(**{**fields, **spreads, "row": Row(**fields["row"])})


def measure(rows: Group, threads: int, effort: Effort, device: str) -> list[Result]:
    """Measures rows of one case, one dtype and one `against`, which all take turns."""
    case, dtype, against = rows[0].case, rows[0].torch_dtype, rows[0].against
    contenders = {row.contender: row.contender for row in rows} | {"against": against, "control": against}
    times: dict[str, list[int]] = {role: [] for role in contenders}
    host_us: dict[str, float | None] = {}
    step_bytes: dict[str, int] = {}
    copies: list[float] = []
    torch.set_num_threads(threads)
    for block in range(effort.blocks):
        copies += copy_bandwidths(device)
        setups = {
            role: setup(case, contenders[role], dtype, threads, device)
            for role in list(contenders)[:: -1 if block % 2 else 1]
        }
        timers = {role: clock_for(device).timer(made.step) for role, made in setups.items()}
        host_us = {role: on_host for role, (_, on_host) in timers.items()}
        takes = {role: take for role, (take, _) in timers.items()}
        rounds = -(-effort.rounds // effort.blocks)
        for role, samples in time_in_turns(takes, rounds, effort.seconds / effort.blocks).items():
            times[role] += samples
        for role, made in setups.items():
            made.check_values()
            step_bytes[role] = made.step_bytes()
        del setups, timers, takes, made  # before the next block allocates: VGG16 takes 1.7 GB each
    median = {role: statistics.median(samples) for role, samples in times.items()}
    control = Spread.of(paired_ratios(times["control"], times["against"]))
    return [
        Result(
            row=row,
            threads=threads,
            rounds=len(times["against"]),
            time_ms=median[row.contender] / 1e6,
            against_ms=median["against"] / 1e6,
            ratio=Spread.of(paired_ratios(times[row.contender], times["against"])),
            control=control,
            bytes_per_parameter=step_bytes[row.contender] / parameter_count(case),
            gb_per_s=step_bytes[row.contender] / median[row.contender],
            copy_gb_per_s=statistics.median(copies),
            host_us=host_us[row.contender],
        )
        for row in rows
    ]


def measure_all(
    child: Child, wanted: Sequence[tuple[Group, int]], effort: Effort, device: str, note: Callable[[str, str], None]
) -> Iterator[list[Result]]:
    """Yields the results of groups, each with a number of threads, as they come.

    Args:
        child: measures.
        wanted: groups and numbers of threads.
        effort: for each of them.
        device: `"cpu"` or `"cuda"`.
        note: is told what is left out, and why.
    """
    reasons: dict[tuple[str, str], str | None] = {}
    lost: set[str] = set()

    def is_missing(contender: str, dtype: str) -> bool:
        if (contender, dtype) not in reasons:
            try:
                reason = child.call(effort.limit_s, why_unavailable, contender, DTYPES[dtype], device)
            except (CallFailed, ProcessLost) as error:
                reason = str(error)
            reasons[contender, dtype] = reason
            if reason is not None and (dtype == "float32" or reason != reasons.get((contender, "float32"))):
                note(contender if dtype == "float32" else f"{contender} in {dtype}", reason)
        return contender in lost or reasons[contender, dtype] is not None

    left = deque(wanted)
    while left:
        group, threads = left.popleft()
        if not (group := available(group, is_missing)):
            continue
        try:
            yield child.call(effort.limit_s, measure, group, threads, effort, device)
        except (CallFailed, ProcessLost) as error:
            if len(group) > 1:  # nobody knows which of them it was
                left.extendleft(([row], threads) for row in reversed(group))
                continue
            (row,) = group
            place = f"{row.contender} on {row.case} in {row.dtype}"
            note(place, str(error))
            if isinstance(error, ProcessLost):  # a kernel that never ends would else be waited for on every network
                lost.add(row.contender)
                note(row.contender, f"left out after {place}")
