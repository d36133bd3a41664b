"""Timing of contenders that take turns, and the copy bandwidth of the machine.

Shared machines drift: a minute later everything may be a quarter slower. So two contenders are only
compared inside a round, where each takes one step, and the figure is the median of these paired
ratios. A contender never follows itself; it finds the caches filled with the others' data, as an
optimizer does after a forward and a backward pass. Timed alone, a network of a few million
parameters stays in a large cache from step to step, and its step looks faster than in training.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from time import perf_counter_ns

import torch
from torch import Tensor

COPY_BYTES = 512 * 2**20  # far larger than any cache


@dataclass(frozen=True)
class Spread:
    """Median with the 20th and 80th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarise two or more samples."""
        low, *_, high = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(statistics.median(samples), low, high)


def paired_ratios(times: Sequence[int], against: Sequence[int]) -> list[float]:
    """Ratio of the times of each round."""
    return [ours / theirs for ours, theirs in zip(times, against, strict=True)]


def turns(names: Sequence[str], seed: int = 0) -> Iterator[list[str]]:
    """Endless random orders in which no name follows itself; two names simply alternate."""
    chance = random.Random(seed)
    last = None
    while True:
        order = chance.sample(names, len(names))
        if order[0] != last:
            last = order[-1]
            yield order


def time_in_turns(steps: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[int]]:
    """Time one step of each contender per round, in nanoseconds.

    Goes on until there are `rounds` rounds and `seconds` have passed, so that cheap steps get many
    rounds. As many warm-up rounds as a tenth of `rounds` come before.

    Args:
        steps: two or more contenders by name.
        rounds: at least so many.
        seconds: at least so long.
    """
    times: dict[str, list[int]] = {name: [] for name in steps}
    orders = turns(list(steps))
    for _ in range(max(2, rounds // 10)):
        for name in next(orders):
            steps[name]()
    gc.collect()
    gc.disable()  # as timeit does: a collection would hit one contender of one round
    try:
        end = perf_counter_ns() + int(seconds * 1e9)
        done = 0
        while done < rounds or perf_counter_ns() < end:
            for name in next(orders):
                step = steps[name]
                start = perf_counter_ns()
                step()
                times[name].append(perf_counter_ns() - start)
            done += 1
    finally:
        gc.enable()
    return times


@cache  # to touch a gigabyte for the first time takes longer than to copy it
def _copy_buffers(size: int) -> tuple[Tensor, Tensor]:
    return torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)


def copy_bandwidths(threads: int, copies: int = 3) -> list[float]:
    """GB/s of single `Tensor.copy_` calls on `COPY_BYTES`, read and written bytes counted.

    Sets torch's thread count.
    """
    torch.set_num_threads(threads)
    source, target = _copy_buffers(COPY_BYTES)
    figures = []
    for _ in range(copies):
        start = perf_counter_ns()
        target.copy_(source)
        figures.append(2 * COPY_BYTES / (perf_counter_ns() - start))
    return figures
