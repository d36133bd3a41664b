"""A comparison that is not done yet, on disk, so that it can go on to the bit after it was stopped at any moment.

folder/comparison.json            what is compared, and the results of the runs that are done
folder/SEED-VARIATION-METHOD.pt   the checkpoint of the run that is not
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file beside `path` for writing, and at the end puts it in its place: all of it or nothing is there.

    The contents are on the disk before the name is, so that this holds when the machine loses power, too; the file is
    then this one or the one before.
    """
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_checkpoint(
    path: Path, parts: Mapping[str, Any], generator: torch.Generator, history: Mapping[str, Any]
) -> None:
    """Writes a checkpoint of all that has a `state_dict` in the place of the one before."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with replacing(path) as file:
        torch.save({"parts": state, "generator": generator.get_state(), "history": dict(history)}, file)


def load_checkpoint(path: Path, parts: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Loads a checkpoint into what it was made of; returns the history."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved["parts"][name])
    generator.set_state(saved["generator"])
    history: dict[str, Any] = saved["history"]
    return history


class UnfinishedError(Exception):
    """The folder holds another comparison, or one that the user may want to go on with."""


class Unfinished:
    """The folder of an unfinished comparison; nothing is written before the first run begins.

    Args:
        folder: where to keep it.
        identity: what must be the same for the comparison to go on to the bit; as JSON has it.
        resume: go on with what is there, if anything is.

    Attributes:
        results: of the runs that are done, as JSON has them.

    Raises:
        UnfinishedError: a comparison is there and `resume` is False, or it is another one.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], resume: bool) -> None:
        self._folder = folder
        self._file = folder / "comparison.json"
        self._identity = json.loads(json.dumps(identity))
        self.results: list[dict[str, Any]] = []
        if not self._file.exists():
            return
        holds = f"{folder} holds an unfinished comparison"
        if not resume:
            raise UnfinishedError(f"{holds}: go on with --resume, or remove the folder")
        content = json.loads(self._file.read_text())
        before = content["identity"]
        if before.keys() != self._identity.keys():
            raise UnfinishedError(f"{holds} of another version: go on with that one, or remove the folder")
        for key, ours in sorted(self._identity.items()):
            if before[key] != ours:
                raise UnfinishedError(
                    f"{holds} with {key} {json.dumps(before[key])}, this one has {json.dumps(ours)}: want the same, or "
                    "another folder"
                )
        self.results = content["results"]

    def find(self, method: str, seed: int, variation: str) -> dict[str, Any] | None:
        """Returns the result of a run if it is done."""
        wanted = {"method": method, "seed": seed, "variation": variation}
        return next((result for result in self.results if wanted.items() <= result.items()), None)

    def checkpoint(self, method: str, seed: int, variation: str) -> Path:
        """Returns where a run's checkpoint is or belongs."""
        if not self._file.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write()
        return self._folder / f"{seed}-{variation}-{method}.pt"

    def add(self, result: dict[str, Any]) -> None:
        """Keeps a result; the run's checkpoint is not needed any more."""
        self.results.append(result)
        self._write()
        self.checkpoint(result["method"], result["seed"], result["variation"]).unlink()

    def remove(self) -> None:
        """Removes the folder, the comparison being finished."""
        for path in (*self._folder.glob("*.pt"), *self._folder.glob("*.new")):
            path.unlink()
        self._file.unlink()  # last: whoever is stopped before it still has all results
        self._folder.rmdir()

    def _write(self) -> None:
        with replacing(self._file) as file:
            file.write(json.dumps({"identity": self._identity, "results": self.results}).encode())
