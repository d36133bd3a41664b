"""One training run: a network, a method, a seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.experiments.checkpoints import Saved, load_checkpoint, save_checkpoint
from sasgd_fused.experiments.dataset import Dataset, batches
from sasgd_fused.experiments.evaluate import measure_error
from sasgd_fused.experiments.methods import Tuned
from sasgd_fused.experiments.schedules import SCHEDULES
from sasgd_fused.experiments.step_timer import StepTimer
from sasgd_fused.experiments.variations import TUNED


@dataclass(frozen=True)
class RunResult:
    """What one run gave.

    Attributes:
        method: key in `METHODS`.
        seed: of the initialisation and the batches.
        variation: key in `VARIATIONS`.
        train_loss: for every epoch, the mean cross-entropy over its batches as they were trained on.
        test_error: after every epoch, percent of the test images.
        layer_scale: after every epoch, s_b of every block, input first; empty for methods that do not scale layers.
        step_ms: median time of `optimizer.step()` alone, milliseconds.
        seconds: time of the whole run.
    """

    method: str
    seed: int
    variation: str
    train_loss: list[float]
    test_error: list[float]
    layer_scale: list[list[float]]
    step_ms: float
    seconds: float


@dataclass
class History:
    """The figures of a run so far; `step_ms` holds every step's."""

    train_loss: list[float] = field(default_factory=list)
    test_error: list[float] = field(default_factory=list)
    layer_scale: list[list[float]] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train(
    name: str,
    method: Tuned,
    model: nn.Module,
    data: Dataset,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    backend: str | None,
    on_epoch: Callable[[], None],
    schedule: str = "cosine",
    variation: str = TUNED,
    checkpoint: Path | None = None,
) -> RunResult:
    """Trains a network in place.

    Args:
        name: key of the method in `METHODS`.
        method: makes the optimizer.
        model: the network, initialised, on the device of the data.
        data: what to train and test on.
        seed: draws the order of the batches and the augmentation of their images.
        epochs: passes over the training images.
        batch_size: images in a batch.
        backend: of `ScaleAmendedSGD`, None for the fastest.
        on_epoch: called after every epoch, and for every one that the checkpoint has behind it.
        schedule: key in `SCHEDULES`, how the learning rate falls.
        variation: key in `VARIATIONS`; here it is only noted.
        checkpoint: a file that is written after every epoch; where it is there already, the run goes on from it, to
            the bit. It must be of a run with the same arguments.

    Raises:
        ValueError: the schedule watches the validation error, and the data set has no images for that.
    """
    start = time.perf_counter()
    generator = torch.Generator(data.device).manual_seed(seed)
    optimizer = method.build(model, backend)
    watched = data.validation
    validation_error = partial(measure_error, model, watched.images, watched.labels) if watched else None
    steps = epochs * (len(data.train_images) // batch_size)
    rate = SCHEDULES[schedule](optimizer, steps, validation_error)
    parts: dict[str, Saved] = {"model": model, "optimizer": optimizer, "schedule": rate}
    history = History()
    if checkpoint is not None and checkpoint.exists():
        history = History(**load_checkpoint(checkpoint, parts, generator))
        start -= history.seconds
    for _ in history.train_loss:
        on_epoch()

    timer = StepTimer(data.device)
    for _ in range(len(history.train_loss), epochs):
        model.train()
        losses = []
        for images, labels in batches(data, batch_size, generator):
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            timer.run(optimizer.step)
            rate.after_step()
            losses.append(loss.detach())
        rate.after_epoch()
        history.train_loss.append(torch.stack(losses).mean().item())
        history.test_error.append(measure_error(model, data.test_images, data.test_labels))
        if isinstance(optimizer, ScaleAmendedSGD):
            history.layer_scale.append([row.layer_scale for row in optimizer.layer_report()])
        history.step_ms += timer.read()
        history.seconds = time.perf_counter() - start
        if checkpoint is not None:
            save_checkpoint(checkpoint, parts, generator, asdict(history))
        on_epoch()
    return RunResult(
        name,
        seed,
        variation,
        history.train_loss,
        history.test_error,
        history.layer_scale,
        median(history.step_ms),
        history.seconds,
    )
