"""Which cases of a test `make test` runs, and which `make test-kernels` and `make test-all` run besides.

Every case is collected always. `@pytest.mark.kernels` and `@pytest.mark.nightly` put a test, or a case of it, into a
later tier. `@thin` leaves in the first tier, for each backend that a test names, so many of its cases that every two
values of different parameters meet in one; with `strength=1`, that every value is in one; with 0, one case. `slow` is
the strength on backends that take a hundred times as long. What is left out is run by `make test-kernels`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations

import pytest

thin = pytest.mark.thin
LATER = ("kernels", "nightly")
# Where the parameters lie on a GPU, nothing is emulated and Triton compiles.
SLOW_BACKENDS = ("emulated cuda", "triton") if os.environ.get("SASGD_TEST_DEVICE", "cpu") == "cpu" else ()
BACKENDS = ("emulated cuda", "foreach", "native", "reference", "triton")
COLLECTED = pytest.StashKey[list[pytest.Function]]()

Values = tuple[tuple[str, int], ...]


def assign(items: Sequence[pytest.Item]) -> None:
    """Marks the cases that `@thin` leaves out of the first tier."""
    for (_, backend), cases in by_function_and_backend(items).items():
        mark = cases[0].get_closest_marker("thin")
        if mark is None:
            continue
        strength = mark.kwargs.get("strength", 2)
        if backend in SLOW_BACKENDS:
            strength = mark.kwargs.get("slow", strength)
        quick = cover([values_of(case) for case in cases], strength)
        for index, case in enumerate(cases):
            if index not in quick:
                case.add_marker("kernels")


def by_function_and_backend(items: Sequence[pytest.Item]) -> dict[tuple[str, str | None], list[pytest.Function]]:
    """Returns the cases of each test on each backend that it names, or on None where it names none."""
    found: dict[tuple[str, str | None], list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function):
            values = item.callspec.params.values() if hasattr(item, "callspec") else ()
            backend = next((str(value) for value in values if isinstance(value, str) and value in BACKENDS), None)
            found.setdefault((item.nodeid.partition("[")[0], backend), []).append(item)
    return found


def values_of(case: pytest.Function) -> Values:
    """Returns which values of its parameters a case has: names and objects, which all cases of a test share."""
    params = case.callspec.params if hasattr(case, "callspec") else {}
    return tuple((name, id(value)) for name, value in params.items() if str(value) not in BACKENDS)


def cover(cases: Sequence[Values], strength: int) -> set[int]:
    """Chooses cases such that any `strength` values that meet in a case meet in a chosen one.

    The next chosen is always one in which most of them meet that have not yet.

    Returns:
        The places of the chosen ones.
    """
    meetings = [frozenset(combinations(values, min(strength, len(values)))) for values in cases]
    missing = frozenset().union(*meetings)
    chosen: set[int] = set()
    while missing:
        best = max(range(len(cases)), key=lambda index: len(meetings[index] & missing))
        chosen.add(best)
        missing -= meetings[best]
    return chosen
