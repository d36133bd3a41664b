"""One run: a curve of the training loss over updates and over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from time import process_time
from typing import Any

import torch
from torch import Tensor

from experiments.autoencoder.methods import Method
from experiments.autoencoder.presets import Preset, loss_of, make_autoencoder
from experiments.study.journal import round_to

EACH = 10  # updates for each entry of a curve
WARM_UP = 5  # updates of another network before the clock starts: first calls compile and allocate
DIGITS = 5  # of losses and times in a journal


@dataclass(frozen=True)
class Curve:
    """What a run gave, with an entry for every ten updates.

    Attributes:
        updates: how many were done.
        seconds: time of a processor that was spent by then.
        losses: means over the last ten batches as they were trained on; a run that diverged ends with inf.
    """

    updates: tuple[int, ...]
    seconds: tuple[float, ...]
    losses: tuple[float, ...]

    def after_updates(self, count: int) -> float:
        """Returns the last loss within so many updates."""
        return self._last([done <= count for done in self.updates])

    def after_seconds(self, limit: float) -> float:
        """Returns the last loss within so much time, inf if the first took longer."""
        return self._last([spent <= limit for spent in self.seconds])

    def _last(self, within: list[bool]) -> float:
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
    """Trains with a constant learning rate until both of a preset's limits are passed, or a loss is not finite.

    Args:
        preset: what to train.
        method: how.
        lr: learning rate.
        seed: of the initialisation and the batches.
        images: as `load_images` has them.
    """
    for _ in islice(_losses(preset, method, lr, seed, images), WARM_UP):
        pass
    curve = Curve((), (), ())
    recent: list[float] = []
    start = process_time()
    for done, loss in enumerate(_losses(preset, method, lr, seed, images), 1):
        recent.append(loss if math.isfinite(loss) else math.inf)
        if done % EACH and math.isfinite(loss):
            continue
        spent, mean = process_time() - start, sum(recent) / len(recent)
        curve = Curve((*curve.updates, done), (*curve.seconds, spent), (*curve.losses, mean))
        recent.clear()
        if not math.isfinite(mean) or (done >= preset.updates and spent >= preset.seconds):
            break
    return curve


def _losses(preset: Preset, method: Method, lr: float, seed: int, images: Tensor) -> Iterator[float]:
    """Yields the loss of each batch, after the update by it."""
    model = make_autoencoder(preset.widths, seed)
    optimizer = method.build(model, lr, preset.damping, seed)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(images), generator=generator)
        for begin in range(0, len(images) - preset.batch_size + 1, preset.batch_size):
            batch = images[order[begin : begin + preset.batch_size]]
            loss = loss_of(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield loss.item()
