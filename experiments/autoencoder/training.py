"""One run: a curve of the training loss over updates and over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from time import process_time
from typing import Any

import torch
from torch import Tensor

from experiments.autoencoder.methods import Method
from experiments.autoencoder.presets import Preset, loss_of, make_autoencoder
from experiments.study.run import round_to

DIVERGED = 10.0  # a loss of so many times the first one is not waited with
DIGITS = 5  # of losses and times in a journal


@dataclass(frozen=True)
class Curve:
    """What a run gave, with an entry for each epoch.

    Attributes:
        updates: how many were done at the end of it.
        seconds: time of a processor that was spent by then.
        losses: means over the batches of the epoch as they were trained on; inf in the last one of a run that diverged.
    """

    updates: tuple[int, ...]
    seconds: tuple[float, ...]
    losses: tuple[float, ...]

    def after_updates(self, count: int) -> float:
        """Returns the loss of the last epoch that ended within so many updates."""
        return self._last([done <= count for done in self.updates])

    def after_seconds(self, limit: float) -> float:
        """Returns the loss of the last epoch that ended within so much time, inf if the first took longer."""
        return self._last([spent <= limit for spent in self.seconds])

    def _last(self, within: list[bool]) -> float:
        if not math.isfinite(self.losses[-1]):
            return math.inf
        return self.losses[sum(within) - 1] if any(within) else math.inf

    def __str__(self) -> str:
        return f"loss {self.losses[-1]:.2f} after {self.updates[-1]} updates and {self.seconds[-1]:.1f} s"

    def to_json(self) -> dict[str, Any]:
        """Returns the entries of a line of a journal."""
        losses = [round_to(DIGITS, loss) if math.isfinite(loss) else None for loss in self.losses]
        seconds = [round_to(DIGITS, spent) for spent in self.seconds]
        return {"updates": self.updates, "seconds": seconds, "losses": losses}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> Curve:
        """Returns what `to_json` wrote."""
        losses = [math.inf if loss is None else float(loss) for loss in entry["losses"]]
        return Curve(tuple(entry["updates"]), tuple(entry["seconds"]), tuple(losses))


def train(preset: Preset, method: Method, lr: float, seed: int, images: Tensor) -> Curve:
    """Trains with a constant learning rate until both of a preset's limits are passed, or the loss grows too far.

    Args:
        preset: what to train.
        method: how.
        lr: learning rate.
        seed: of the initialisation and the batches.
        images: as `load_images` has them.
    """
    model = make_autoencoder(preset.widths, seed)
    optimizer = method.build(model, lr)
    generator = torch.Generator().manual_seed(seed)
    updates: list[int] = []
    seconds: list[float] = []
    losses: list[float] = []
    done, first = 0, math.inf
    start = process_time()
    while not updates or updates[-1] < preset.updates or seconds[-1] < preset.seconds:
        of_epoch = []
        order = torch.randperm(len(images), generator=generator)
        for begin in range(0, len(images) - preset.batch_size + 1, preset.batch_size):
            batch = images[order[begin : begin + preset.batch_size]]
            loss = loss_of(model(batch), batch)
            of_epoch.append(loss.item())
            first = min(first, DIVERGED * of_epoch[0])
            if not of_epoch[-1] <= first:
                return Curve((*updates, done), (*seconds, process_time() - start), (*losses, math.inf))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
        updates.append(done)
        seconds.append(process_time() - start)
        losses.append(sum(of_epoch) / len(of_epoch))
    return Curve(tuple(updates), tuple(seconds), tuple(losses))
