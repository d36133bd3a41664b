"""Two steps that take turns with a large copy, and the figures that follow from their times."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch

from bench.gpu.clocks import Clock, Step
from bench.interleave import Spread, paired_ratios, turns

MIN_ROUNDS = 5
WARM_UP_ROUNDS = 3

Times = dict[str, list[int]]


def sample_in_turns(samples: Mapping[str, Callable[[], int]], seconds: float) -> Times:
    """Take one sample of each per round, for `seconds` and `MIN_ROUNDS` at least, in the orders of `turns`.

    Args:
        samples: two or more calls that take a sample, in nanoseconds.
        seconds: how long.
    """
    times: Times = {name: [] for name in samples}
    orders = turns(list(samples))
    gc.collect()
    gc.disable()
    try:
        for _ in range(WARM_UP_ROUNDS):
            for name in next(orders):
                samples[name]()
        end = perf_counter() + seconds
        while len(times[name]) < MIN_ROUNDS or perf_counter() < end:
            for name in next(orders):
                times[name].append(samples[name]())
    finally:
        gc.enable()
    return times


def copy_step(clock: Clock) -> Step:
    """A call that copies `clock.copy_bytes`."""
    source = torch.ones(clock.copy_bytes, dtype=torch.uint8, device=clock.device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def spread_of(samples: Sequence[float]) -> dict[str, float]:
    """Median with the 20th and 80th percentile, as it is stored."""
    spread = Spread.of(samples)
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def figures_of(times: Times, step_bytes: int | None = None, copy_bytes: int = 0) -> dict[str, object]:
    """Figures of `times["ours"]` against `times["against"]`, and against `times["copy"]` where `step_bytes` is given.

    Args:
        times: nanoseconds, paired by rounds.
        step_bytes: what a step has to read and write.
        copy_bytes: what the copy reads; it writes as much.
    """
    ours = times["ours"]
    figures: dict[str, object] = {
        "rounds": len(ours),
        "us": spread_of([ns / 1e3 for ns in ours]),
        "against_us": spread_of([ns / 1e3 for ns in times["against"]]),
        "ratio": spread_of(paired_ratios(ours, times["against"])),
    }
    if step_bytes is not None:
        bandwidths = [2 * copy_bytes / ns for ns in times["copy"]]
        figures["gb_per_s"] = spread_of([step_bytes / ns for ns in ours])
        figures["copy_gb_per_s"] = spread_of(bandwidths)
        figures["share_of_copy"] = spread_of(
            [step_bytes / ns / bandwidth for ns, bandwidth in zip(ours, bandwidths, strict=True)]
        )
    return figures
