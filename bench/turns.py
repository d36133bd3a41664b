"""Timing of contenders that take turns.

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
from time import perf_counter


@dataclass(frozen=True)
class Spread:
    """Median with the 20th and 80th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarises two or more samples."""
        low, *_, high = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(statistics.median(samples), low, high)

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired_ratios(times: Sequence[int], against: Sequence[int]) -> list[float]:
    """Returns the ratio of the times of each round."""
    return [ours / theirs for ours, theirs in zip(times, against, strict=True)]


def turns(names: Sequence[str], seed: int = 0) -> Iterator[list[str]]:
    """Yields random orders without end, in which no name follows itself; two names simply alternate."""
    chance = random.Random(seed)
    last = None
    while True:
        order = chance.sample(names, len(names))
        if order[0] != last:
            last = order[-1]
            yield order


def time_in_turns(timers: Mapping[str, Callable[[], int]], rounds: int, seconds: float) -> dict[str, list[int]]:
    """Times one step of each contender per round, in nanoseconds.

    Goes on until there are `rounds` rounds and `seconds` have passed, so that cheap steps get many
    rounds. As many warm-up rounds as a tenth of `rounds` come before.

    Args:
        timers: two or more by the contender's name; each takes a step and returns its time.
        rounds: at least so many.
        seconds: at least so long.
    """
    times: dict[str, list[int]] = {name: [] for name in timers}
    orders = turns(list(timers))
    for _ in range(max(2, rounds // 10)):
        for name in next(orders):
            timers[name]()
    gc.collect()
    gc.disable()  # as timeit does: a collection would hit one contender of one round
    try:
        end = perf_counter() + seconds
        done = 0
        while done < rounds or perf_counter() < end:
            for name in next(orders):
                times[name].append(timers[name]())
            done += 1
    finally:
        gc.enable()
    return times
