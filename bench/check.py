"""Compares ratios to torch's fused step with those of an earlier run, the baseline: `python -m bench.table --check`.

Times are those of a machine and an hour; ratios within a run are not. A row has become worse when its rounds and
the baseline's hardly overlap: 80 % of the ratios now are larger than 80 % of those then. Where torch's step strays
from itself by as much in the same rounds, that says nothing, and the row is undecided. Rows of ours alone are
looked at, since no change of this project makes another optimizer slower, and rows of pairs alone (see `rows.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import CASES
from bench.contenders import OURS
from bench.interleave import Spread
from bench.measure import Result
from bench.report import format_spread
from bench.rows import AGAINST, Row

OK, WORSE, UNDECIDED = "ok", "WORSE", "UNDECIDED"

# What else a ratio depends on; a baseline that differs in it is compared all the same, and that is said.
SAME = ("cpu", "cores", "torch", "compiler of the extension")


@dataclass(frozen=True)
class Baseline:
    """What an earlier run found.

    Attributes:
        where: the machine then.
        ratios: of each row and number of threads.
    """

    where: Mapping[str, object]
    ratios: Mapping[tuple[Row, int], Spread]

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read the rows that are checked from a file that `bench.table` wrote.

        Raises:
            FileNotFoundError: if there is none, with the command that makes one.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path.name} is not in {path.parent.name}/; `--out {path.stem}` writes it")
        stored: dict[str, Any] = json.loads(path.read_text())
        ratios = {
            (Row(**result["row"]), int(result["threads"])): Spread(**result["ratio"]) for result in stored["results"]
        }
        return cls(stored["where"], {key: ratio for key, ratio in ratios.items() if is_checked(key[0])})

    def differences(self, where: Mapping[str, object]) -> list[str]:
        """In what that machine differs from this one, where it matters."""
        return [
            f"{key}: {self.where.get(key)} then, {where[key]} now" for key in SAME if self.where.get(key) != where[key]
        ]


def is_checked(row: Row) -> bool:
    """Whether a row says something about a change of this project."""
    return row.against == AGAINST and row.contender in OURS and row.case in CASES


def judge(now: Spread, then: Spread, control: Spread) -> str:
    """Whether a ratio is "ok", or rose by more than both spreads explain: "WORSE", or no more than the control did."""
    if now.low <= then.high:
        return OK
    return WORSE if now.low > then.high * control.high else UNDECIDED


def verdicts(results: Sequence[Result], baseline: Baseline) -> list[tuple[str, str]]:
    """What `judge` says of each row, and a line that tells it."""
    found = []
    for result in results:
        then = baseline.ratios[result.row, result.threads]
        verdict = judge(result.ratio, then, result.control)
        line = (
            f"{verdict:<10}{result.row.contender} on {result.row.case}, threads: {result.threads}: "
            f"{format_spread(then)} -> {format_spread(result.ratio)}; control {format_spread(result.control)}"
        )
        found.append((verdict, line))
    return found
