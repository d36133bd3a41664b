"""Compares ratios to torch's fused step with those of an earlier run, the baseline: `python -m bench --check`.

Times are those of a machine and an hour; ratios within a run are not. A row has become worse when its rounds and
the baseline's hardly overlap: 80 % of the ratios now are larger than 80 % of those then. Where torch's step strays
from itself by as much in the same rounds, that says nothing, and the row is undecided. Rows of ours alone are
looked at, since no change of this project makes another optimizer slower, and rows of pairs alone (see `rows.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cases import GRID_CASES
from bench.child import Child
from bench.contenders import OURS, REPLAYED
from bench.measure import Effort, measure_all
from bench.rows import Group, Row
from bench.turns import Spread

OK, WORSE, UNDECIDED = "ok", "WORSE", "UNDECIDED"

# What else a ratio depends on; a baseline that differs in it is compared all the same, and that is said.
SAME = ("device", "cpu", "cores", "torch", "compiler of the extension")


def check(
    path: Path, wanted: Sequence[tuple[Group, int]], effort: Effort, device: str, where: Mapping[str, object]
) -> int:
    """Measures rows of the baseline in `path` again, and prints how they have changed.

    Returns:
        1 if a row has become worse, 2 if one could not be measured or judged or there was none, else 0.
    """
    stored: dict[str, Any] = json.loads(path.read_text())
    for key in SAME:
        if stored["where"].get(key) != where.get(key):
            print(f"The baseline is of another machine: {key}: {stored['where'].get(key)} then, {where.get(key)} now")
    ratios = {_place(Row(**r["row"]), r["threads"]): Spread(**r["ratio"]) for r in stored["results"]}
    left = [
        (group, threads)
        for group, threads in wanted
        if len(group) == 1 and is_checked(group[0]) and _place(group[0], threads) in ratios
    ]
    found: list[str] = []
    left_out: dict[str, str] = {}
    with Child() as child:
        for (result,) in measure_all(child, left, effort, device, left_out.__setitem__):
            then = ratios[_place(result.row, result.threads)]
            found.append(judge(result.ratio, then, result.control))
            print(
                f"{found[-1]:<10}{result.row.contender} on {result.row.case}, threads: {result.threads}: "
                f"{then} -> {result.ratio}; control {result.control}",
                flush=True,
            )
    for name, reason in left_out.items():
        print(f"Not measured: {name} ({reason}).")
    if not left:
        print("The baseline has no such rows.")
    if WORSE in found:
        return 1
    return 2 if left_out or set(found) != {OK} else 0


def is_checked(row: Row) -> bool:
    """Returns whether a row says something about a change of this project."""
    return (
        row.against.startswith("torch fused") and row.contender in {**OURS, **REPLAYED} and row.case not in GRID_CASES
    )


def judge(now: Spread, then: Spread, control: Spread) -> str:
    """Says whether a ratio is "ok", or rose by more than both spreads explain: "WORSE", or less than the control."""
    if now.low <= then.high:
        return OK
    return WORSE if now.low > then.high * control.high else UNDECIDED


def _place(row: Row, threads: int) -> tuple[object, ...]:
    """What a comparison is of; an aim may have changed since."""
    return row.case, row.contender, row.against, row.dtype, threads
