"""The journal of the study: a file with one line of JSON for each run that is done."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.study.run import Outcome

DIGITS = 6  # of losses and times in a line, so that a journal of many thousand runs stays small


@dataclass(frozen=True)
class Run:
    """Which run of the study: what a line of the journal is found by.

    Attributes:
        setting: key in `SETTINGS`.
        method: key in `STUDIED` or `ABLATIONS`.
        lr: learning rate.
        weight_decay: weight decay.
        seed: of the weights and of the order of the images.
        tuning: trained and tested on the images for tuning, not on those for evaluation.
    """

    setting: str
    method: str
    lr: float
    weight_decay: float
    seed: int
    tuning: bool


class Journal:
    """A journal that runs are added to; the file and its folder are made when the first is.

    A run is on the disk before `add` returns. Of a line that was cut off when the machine or the process ended nothing
    is left.

    Args:
        path: where the file is or belongs.

    Attributes:
        outcomes: of the runs that are done.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.outcomes: dict[Run, Outcome] = read_journal(path) if path.exists() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._file.truncate(_end_of_lines(path.read_bytes()))

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, run: Run, outcome: Outcome) -> None:
        """Writes down that a run is done."""
        line = _to_json(run, outcome)
        self._file.write(line.encode() + b"\n")
        os.fsync(self._file.fileno())
        _, self.outcomes[run] = _from_json(line)


def read_journal(path: Path) -> dict[Run, Outcome]:
    """Returns the runs of a journal; a last line that was cut off is none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no journal.
    """
    content = path.read_bytes()
    outcomes: dict[Run, Outcome] = {}
    for number, line in enumerate(content[: _end_of_lines(content)].splitlines(), 1):
        try:
            run, outcome = _from_json(line)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"got {line[:80]!r} in line {number} of {path}, want a run of `study`") from error
        outcomes.setdefault(run, outcome)
    return outcomes


def _end_of_lines(content: bytes) -> int:
    """Returns where the last whole line ends."""
    return content.rfind(b"\n") + 1


def _to_json(run: Run, outcome: Outcome) -> str:
    loss = _round(outcome.train_loss) if math.isfinite(outcome.train_loss) else None
    measured = {"test_error": outcome.test_error, "train_loss": loss, "seconds": _round(outcome.seconds)}
    return json.dumps({**asdict(run), **measured}, allow_nan=False)


def _from_json(line: str | bytes) -> tuple[Run, Outcome]:
    entry: Mapping[str, Any] = json.loads(line)
    lr, weight_decay = float(entry["lr"]), float(entry["weight_decay"])
    run = Run(str(entry["setting"]), str(entry["method"]), lr, weight_decay, int(entry["seed"]), bool(entry["tuning"]))
    loss = math.inf if entry["train_loss"] is None else float(entry["train_loss"])
    return run, Outcome(float(entry["test_error"]), loss, float(entry["seconds"]))


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
