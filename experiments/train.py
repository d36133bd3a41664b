"""One training run: a network, an optimizer, a seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from experiments.data import Dataset, batches
from experiments.resume import load_checkpoint, save_checkpoint
from sasgd_fused import ScaleAmendedSGD

# The paper's: the rate is halved when the validation error has not fallen for more than ten epochs.
PATIENCE = 10
FACTOR = 0.5
# Images at once. Few enough that activations stay in the caches of a CPU: all 899 digits take a third longer.
CHUNK = 256


@dataclass
class History:
    """The figures of a run so far.

    Attributes:
        train_loss: for every epoch, the mean cross-entropy over its batches as they were trained on.
        test_error: after every epoch, percent of the test images.
        layer_scale: after every epoch, s_b of every layer, input first; empty for methods that do not scale layers.
        step_ms: time of every `optimizer.step()` alone, milliseconds.
        seconds: time of the whole run.
    """

    train_loss: list[float] = field(default_factory=list)
    test_error: list[float] = field(default_factory=list)
    layer_scale: list[list[float]] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train(
    model: nn.Module,
    optimizer: Optimizer,
    data: Dataset,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    schedule: str = "cosine",
    on_epoch: Callable[[], None] = lambda: None,
    checkpoint: Path | None = None,
) -> History:
    """Trains a network in place.

    Args:
        model: the network, initialised, on the device of the data.
        optimizer: of its parameters.
        data: what to train and test on.
        seed: draws the order of the batches and the augmentation of their images.
        epochs: passes over the training images.
        batch_size: images in a batch.
        schedule: how the learning rate falls: "cosine", to zero, a little with every step, or "plateau".
        on_epoch: called after every epoch, and for every one that the checkpoint has behind it.
        checkpoint: a file that is written after every epoch; where it is there already, the run goes on from it, to
            the bit. It must be of a run with the same arguments.

    Raises:
        ValueError: the schedule watches the validation error, and the data set has no images for that.
    """
    if schedule == "plateau" and data.validation is None:
        raise ValueError("schedule: got plateau for a data set without validation images, want cosine")
    start = time.perf_counter()
    generator = torch.Generator(data.train[0].device).manual_seed(seed)
    cosine = CosineAnnealingLR(optimizer, epochs * (len(data.train[0]) // batch_size)) if schedule == "cosine" else None
    plateau = None if cosine else ReduceLROnPlateau(optimizer, factor=FACTOR, patience=PATIENCE)
    parts = {"model": model, "optimizer": optimizer, "schedule": cosine or plateau}
    history = History()
    if checkpoint is not None and checkpoint.exists():
        history = History(**load_checkpoint(checkpoint, parts, generator))
        start -= history.seconds
    for _ in history.train_loss:
        on_epoch()
    for _ in range(len(history.train_loss), epochs):
        model.train()
        losses, times = [], []
        for images, labels in batches(data, batch_size, generator):
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            before = _now(images.device)
            optimizer.step()
            times.append((before, _now(images.device)))
            if cosine:
                cosine.step()
            losses.append(loss.detach())
        if plateau and data.validation:
            plateau.step(measure_error(model, *data.validation))
        history.train_loss.append(torch.stack(losses).mean().item())
        history.test_error.append(measure_error(model, *data.test))
        if isinstance(optimizer, ScaleAmendedSGD):
            history.layer_scale.append([row.layer_scale for row in optimizer.layer_report()])
        history.step_ms += [_milliseconds(*pair) for pair in times]
        history.seconds = time.perf_counter() - start
        if checkpoint is not None:
            save_checkpoint(checkpoint, parts, generator, asdict(history))
        on_epoch()
    return history


@torch.no_grad()
def measure_error(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the percent of the images that the network takes for another class; leaves it in evaluation mode."""
    model.eval()
    wrong = torch.zeros((), dtype=torch.int64, device=labels.device)
    for some_images, some_labels in zip(torch.split(images, CHUNK), torch.split(labels, CHUNK), strict=True):
        wrong += (model(some_images).argmax(dim=1) != some_labels).sum()
    return 100 * int(wrong) / len(labels)


def _now(device: torch.device) -> Any:
    """Returns the time; on a GPU as an event in the stream, so that training does not wait for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _milliseconds(before: Any, after: Any) -> float:
    if isinstance(before, float):
        return (after - before) * 1e3  # type: ignore[no-any-return]
    after.synchronize()
    return before.elapsed_time(after)  # type: ignore[no-any-return]
