"""The journal of a study: a file with one line of JSON for each run that is done, and one for what a setting is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar


class Measured(Protocol):
    """What a run gave; `str` of it is a few words for the terminal."""

    def to_json(self) -> dict[str, Any]:
        """Returns the entries of a line."""


Found = TypeVar("Found", bound=Measured)
Read = Callable[[Mapping[str, Any]], Found]  # makes of a line what its run gave


@dataclass(frozen=True)
class Run:
    """Which run of the study: what a line of the journal is found by.

    Attributes:
        setting: key of what is trained on what.
        method: key of how.
        lr: learning rate.
        weight_decay: weight decay.
        seed: of the weights and of the order of the images.
        tuning: whether settings are chosen by it; else they are compared by it.
    """

    setting: str
    method: str
    lr: float
    weight_decay: float
    seed: int
    tuning: bool


class Journal(Generic[Found]):
    """A journal that runs are added to.

    A run is on the disk before `add` returns. Of a line that was cut off when the machine or the process ended nothing
    is left.

    Args:
        path: of the file, which is made if it is not there.
        settings: those that runs will be of, dataclasses.
        read: makes of a line what its run gave.

    Attributes:
        outcomes: of the runs that are done.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it is no journal, or has runs of a setting that was another.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], read: Read[Found]) -> None:
        self.outcomes: dict[Run, Found]
        self.outcomes, self._defined = _read(path, read) if path.exists() else ({}, {})
        self._outcome_of = read
        # As JSON has it, which knows no tuples.
        self._definitions = {name: json.loads(json.dumps(asdict(setting))) for name, setting in settings.items()}
        for name, definition in self._defined.items():
            if name in settings and definition != self._definitions[name]:
                raise ValueError(f"got {path} with runs of {name} as {definition}, want {self._definitions[name]}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._file.truncate(_end_of_lines(path.read_bytes()))

    def __enter__(self) -> Journal[Found]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, run: Run, outcome: Found) -> None:
        """Writes down that a run is done, and before the first of a setting what this is."""
        name = run.setting
        line = json.dumps({**asdict(run), **outcome.to_json()}, allow_nan=False)
        if name not in self._defined:
            self._write(json.dumps({"setting": name, "definition": self._definitions[name]}))
            self._defined[name] = self._definitions[name]
        self._write(line)
        os.fsync(self._file.fileno())
        self.outcomes[run] = self._outcome_of(json.loads(line))

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")


def read_journal(path: Path, read: Read[Found]) -> dict[Run, Found]:
    """Returns the runs of a journal; a last line that was cut off is none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no journal.
    """
    return _read(path, read)[0]


def _read(path: Path, read: Read[Found]) -> tuple[dict[Run, Found], dict[str, Any]]:
    """Returns the runs, and what their settings were."""
    content = path.read_bytes()
    outcomes: dict[Run, Found] = {}
    definitions: dict[str, Any] = {}
    for number, line in enumerate(content[: _end_of_lines(content)].splitlines(), 1):
        try:
            entry = json.loads(line)
            if "definition" in entry:
                definitions.setdefault(entry["setting"], entry["definition"])
            else:
                outcomes.setdefault(_run_of(entry), read(entry))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"got {line[:80]!r} in line {number} of {path}, want a run") from error
    return outcomes, definitions


def _end_of_lines(content: bytes) -> int:
    """Returns where the last whole line ends."""
    return content.rfind(b"\n") + 1


def _run_of(entry: Mapping[str, Any]) -> Run:
    lr, weight_decay = float(entry["lr"]), float(entry["weight_decay"])
    return Run(str(entry["setting"]), str(entry["method"]), lr, weight_decay, int(entry["seed"]), bool(entry["tuning"]))


def round_to(digits: int, value: float) -> float:
    """Returns a number rounded to so many digits."""
    return float(f"{value:.{digits}g}")
