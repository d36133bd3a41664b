"""Checkpoints of a run: there always is a whole one, and a run goes on from it to the bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import torch


class Saved(Protocol):
    """What has a state to save: a network, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Takes a state over."""
        ...


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
    path: Path, parts: Mapping[str, Saved], generator: torch.Generator, history: Mapping[str, Any]
) -> None:
    """Writes a checkpoint in the place of the one before.

    Args:
        path: of the file.
        parts: by name, what has a state.
        generator: what draws the batches.
        history: plain numbers and lists.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    with replacing(path) as file:
        torch.save({"parts": state, "generator": generator.get_state(), "history": dict(history)}, file)


def load_checkpoint(path: Path, parts: Mapping[str, Saved], generator: torch.Generator) -> dict[str, Any]:
    """Loads a checkpoint into what it was made of; returns the history."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved["parts"][name])
    generator.set_state(saved["generator"])
    history: dict[str, Any] = saved["history"]
    return history
