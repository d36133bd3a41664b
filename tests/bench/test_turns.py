"""Contenders take turns, and what is compared was measured in the same round."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise

from bench.turns import Spread, paired_ratios, time_in_turns, turns


def test_contenders_take_turns_and_never_follow_themselves() -> None:
    assert len({tuple(order) for order in islice(turns("AB"), 20)}) == 1
    sequence = [name for order in islice(turns("ABC"), 200) for name in order]
    assert all(now != then for now, then in pairwise(sequence))
    followers = set(pairwise(sequence))
    assert len(followers) == 6, "each follows each of the others"


def test_every_round_times_every_contender_once() -> None:
    calls: list[str] = []

    def timer(name: str) -> Callable[[], int]:
        def take() -> int:
            calls.append(name)
            return len(calls)

        return take

    times = time_in_turns({name: timer(name) for name in "ABC"}, rounds=20, seconds=0)
    assert {name: len(samples) for name, samples in times.items()} == dict.fromkeys("ABC", 20)
    assert len(calls) == 3 * (20 + 2)
    assert min(map(min, times.values())) == 7, "two warm-up rounds are not among the times"


def test_ratios_are_paired_before_they_are_summarised() -> None:
    # The machine slows down tenfold half way: the ratio of each round does not notice.
    against = [10, 10, 10, 100, 100]
    assert paired_ratios([5, 5, 5, 50, 50], against) == [0.5] * 5
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == Spread(median=3.5, low=2.0, high=5.0)
