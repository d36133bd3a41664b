"""A comparison that is not done yet, on disk, so that it can go on after it was stopped at any moment.

folder/comparison.json            what is compared, and the results of the runs that are done
folder/SEED-VARIATION-METHOD.pt   the checkpoint of the run that is not
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sasgd_fused.experiments.checkpoints import replacing
from sasgd_fused.experiments.train import RunResult


class UnfinishedError(Exception):
    """The folder holds another comparison, or one that the user may want to go on with."""


class Unfinished:
    """The folder of an unfinished comparison; nothing is written before the first run begins.

    Args:
        folder: where to keep it.
        identity: what must be the same for the comparison to go on to the bit; as JSON has it.
        resume: go on with what is there, if anything is.

    Attributes:
        results: of the runs that are done.

    Raises:
        UnfinishedError: a comparison is there and `resume` is False, or it is another one.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], resume: bool) -> None:
        self._folder = folder
        self._file = folder / "comparison.json"
        self._identity = json.loads(json.dumps(identity))
        self.results: list[RunResult] = []
        if not self._file.exists():
            return
        if not resume:
            raise UnfinishedError(f"{folder} holds an unfinished comparison: go on with --resume, or remove the folder")
        content = json.loads(self._file.read_text())
        before = content["identity"]
        for key in sorted(before.keys() | self._identity.keys()):
            if before.get(key) != self._identity.get(key):
                if key not in before or key not in self._identity:
                    raise UnfinishedError(
                        f"{folder} holds an unfinished comparison of another version: go on with that one, or remove "
                        "the folder"
                    )
                raise UnfinishedError(
                    f"{folder} holds an unfinished comparison with {key} {json.dumps(before.get(key))}, this one has "
                    f"{json.dumps(self._identity.get(key))}: want the same, or another folder"
                )
        self.results = [RunResult(**entry) for entry in content["results"]]

    def find(self, name: str, seed: int, variation: str) -> RunResult | None:
        """The result of a run if it is done."""
        wanted = name, seed, variation
        found = (result for result in self.results if (result.method, result.seed, result.variation) == wanted)
        return next(found, None)

    def checkpoint(self, name: str, seed: int, variation: str) -> Path:
        """Where a run's checkpoint is or belongs."""
        if not self._file.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write()
        return self._folder / f"{seed}-{variation}-{name}.pt"

    def add(self, result: RunResult) -> None:
        """Keeps a result; the run's checkpoint is not needed any more."""
        self.results.append(result)
        self._write()
        self.checkpoint(result.method, result.seed, result.variation).unlink()

    def remove(self) -> None:
        """Removes the folder, the comparison being finished."""
        for path in (*self._folder.glob("*.pt"), *self._folder.glob("*.new")):
            path.unlink()
        self._file.unlink()  # last: whoever is stopped before it still has all results
        self._folder.rmdir()

    def _write(self) -> None:
        content = {"identity": self._identity, "results": [asdict(result) for result in self.results]}
        with replacing(self._file) as file:
            file.write(json.dumps(content).encode())
