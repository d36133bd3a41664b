"""Which cases of a test `make test` runs, which `make test-kernels`, and which only `make test-all`.

Every case is collected always, under the same name. `@pytest.mark.kernels` and `@pytest.mark.nightly` put a test, or a
case of it, into a later tier. `@thin` leaves in the first tier a cover of its cases: enough of them that every two
values of different parameters meet in one. The others go to a later tier, those on slow backends to `kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import pytest

# A case takes some hundred times as long on these as on others.
SLOW_BACKENDS = ("emulated cuda", "triton")

thin = pytest.mark.thin


def assign(items: Sequence[pytest.Item]) -> None:
    """Marks the cases that the first tier leaves out."""
    functions: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("thin"):
            functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in functions.values():
        quick = _cover([_values(case) for case in cases])
        for index, case in enumerate(cases):
            if index not in quick:
                slow = any(value in SLOW_BACKENDS for _, value in _values(case))
                case.add_marker("kernels" if slow else "nightly")


def _values(case: pytest.Function) -> list[tuple[str, Any]]:
    """The parameters of a case: name and value, or the value's place among the others where it has no hash."""
    places = case.callspec.indices
    return [
        (name, value if isinstance(value, str) else places[name])
        for name, value in sorted(case.callspec.params.items())
    ]


def _pairs(values: Sequence[tuple[str, Any]]) -> Iterator[tuple[Any, ...]]:
    return combinations(values, 2) if len(values) > 1 else iter([tuple(values)])


def _cover(cases: Sequence[Sequence[tuple[str, Any]]]) -> set[int]:
    """Numbers of cases that have among them every pair of values that any has."""
    pairs = [frozenset(_pairs(case)) for case in cases]
    missing = frozenset().union(*pairs)
    chosen: set[int] = set()
    while missing:
        best = max(range(len(cases)), key=lambda index: len(pairs[index] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return chosen
