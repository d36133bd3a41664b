"""One run of the study."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

from experiments.data import batches
from experiments.study.journal import round_to
from experiments.study.methods import StudiedMethod
from experiments.study.networks import make_network
from experiments.study.settings import Setting
from experiments.study.tasks import load_task
from experiments.train import measure_error

LARGEST_LOSS = 1e4  # above it a run has diverged
DIGITS = 6  # of losses and times in a journal, so that one of many thousand runs stays small


@dataclass(frozen=True)
class Outcome:
    """What one run gave.

    Attributes:
        test_error: percent, after the last epoch; that of guessing where the run diverged.
        train_loss: mean cross-entropy over the batches of the last epoch; inf where it diverged.
        seconds: time of the whole run.
    """

    test_error: float
    train_loss: float
    seconds: float

    def __str__(self) -> str:
        return f"test error {self.test_error:.2f} %"

    def to_json(self) -> dict[str, Any]:
        """Returns the entries of a line of a journal."""
        loss = round_to(DIGITS, self.train_loss) if math.isfinite(self.train_loss) else None
        return {"test_error": self.test_error, "train_loss": loss, "seconds": round_to(DIGITS, self.seconds)}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> Outcome:
        """Returns what `to_json` wrote."""
        loss = math.inf if entry["train_loss"] is None else float(entry["train_loss"])
        return Outcome(float(entry["test_error"]), loss, float(entry["seconds"]))


def run_once(
    setting: Setting, method: StudiedMethod, lr: float, weight_decay: float, seed: int, *, tuning: bool
) -> Outcome:
    """Trains a network from its initialisation and measures its error.

    A run that diverges ends at once, as bad as guessing.

    Args:
        setting: what is trained on what.
        method: how.
        lr: learning rate at the first step.
        weight_decay: weight decay.
        seed: of the initialisation and the batches.
        tuning: on the images to tune by, which have none of those that are evaluated on.
    """
    start = time.perf_counter()
    data = load_task(setting.task, tuning=tuning, classes=setting.classes)
    channels, height, width = data.test[0].shape[1:]
    model = make_network(
        setting.network, (channels, height, width), data.classes, setting.width, setting.depth, setting.init, seed
    )
    optimizer = method.build(model, lr, weight_decay)
    steps = setting.epochs * (len(data.train[0]) // setting.batch_size)
    schedule = LambdaLR(optimizer, partial(SCHEDULES["constant" if method.averages else setting.schedule], steps))
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in range(setting.epochs):
        losses.clear()
        for images, labels in batches(data, setting.batch_size, generator):
            loss = cross_entropy(model(images), labels)
            losses.append(loss.item())
            if not losses[-1] <= LARGEST_LOSS:
                return Outcome(100 * (1 - 1 / data.classes), math.inf, time.perf_counter() - start)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    if method.averages:
        optimizer.eval()  # type: ignore[attr-defined]
        update_bn(batches(data, setting.batch_size, generator), model)
    error = measure_error(model, *data.test)
    return Outcome(error, sum(losses) / len(losses), time.perf_counter() - start)


def _cosine(steps: int, step: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2


def _constant(steps: int, step: int) -> float:
    return 1.0


def _in_steps(steps: int, step: int) -> float:
    return 0.01 if 4 * step >= 3 * steps else 0.1 if 2 * step >= steps else 1.0


# Each gives the factor of the learning rate from the number of all steps and of those that are done.
SCHEDULES: dict[str, Callable[[int, int], float]] = {"cosine": _cosine, "constant": _constant, "step": _in_steps}
