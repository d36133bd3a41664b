"""The journal of the study: a file with one line of JSON for each run that is done, and one for what a setting is."""

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
from experiments.study.settings import Setting

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
    """A journal that runs are added to.

    A run is on the disk before `add` returns. Of a line that was cut off when the machine or the process ended nothing
    is left.

    Args:
        path: of the file, which is made if it is not there.
        settings: those that runs will be of.

    Attributes:
        outcomes: of the runs that are done.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it is no journal, or has runs of a setting that was another.
    """

    def __init__(self, path: Path, settings: Mapping[str, Setting]) -> None:
        self.outcomes, self._defined = _read(path) if path.exists() else ({}, {})
        # As JSON has it, which knows no tuples.
        self._definitions = {name: json.loads(json.dumps(asdict(setting))) for name, setting in settings.items()}
        for name, definition in self._defined.items():
            if name in settings and definition != self._definitions[name]:
                raise ValueError(f"got {path} with runs of {name} as {definition}, want {self._definitions[name]}")
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
        """Writes down that a run is done, and before the first of a setting what this is."""
        name, line = run.setting, _to_json(run, outcome)
        if name not in self._defined:
            self._write(json.dumps({"setting": name, "definition": self._definitions[name]}))
            self._defined[name] = self._definitions[name]
        self._write(line)
        os.fsync(self._file.fileno())
        _, self.outcomes[run] = _from_json(json.loads(line))

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")


def read_journal(path: Path) -> dict[Run, Outcome]:
    """Returns the runs of a journal; a last line that was cut off is none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no journal.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[Run, Outcome], dict[str, Any]]:
    """Returns the runs, and what their settings were."""
    content = path.read_bytes()
    outcomes: dict[Run, Outcome] = {}
    definitions: dict[str, Any] = {}
    for number, line in enumerate(content[: _end_of_lines(content)].splitlines(), 1):
        try:
            entry = json.loads(line)
            if "definition" in entry:
                definitions.setdefault(entry["setting"], entry["definition"])
            else:
                outcomes.setdefault(*_from_json(entry))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"got {line[:80]!r} in line {number} of {path}, want a run of `study`") from error
    return outcomes, definitions


def _end_of_lines(content: bytes) -> int:
    """Returns where the last whole line ends."""
    return content.rfind(b"\n") + 1


def _to_json(run: Run, outcome: Outcome) -> str:
    loss = _round(outcome.train_loss) if math.isfinite(outcome.train_loss) else None
    measured = {"test_error": outcome.test_error, "train_loss": loss, "seconds": _round(outcome.seconds)}
    return json.dumps({**asdict(run), **measured}, allow_nan=False)


def _from_json(entry: Mapping[str, Any]) -> tuple[Run, Outcome]:
    lr, weight_decay = float(entry["lr"]), float(entry["weight_decay"])
    run = Run(str(entry["setting"]), str(entry["method"]), lr, weight_decay, int(entry["seed"]), bool(entry["tuning"]))
    loss = math.inf if entry["train_loss"] is None else float(entry["train_loss"])
    return run, Outcome(float(entry["test_error"]), loss, float(entry["seconds"]))


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
