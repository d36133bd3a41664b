"""One training run: a network, a method, a seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from sasgd_fused.experiments.data import Dataset, batches
from sasgd_fused.experiments.methods import Method


@dataclass(frozen=True)
class RunResult:
    """What one run gave.

    Attributes:
        method: key in `METHODS`.
        seed: of the initialisation and the batches.
        train_loss: for every epoch, the mean cross-entropy over its batches as they were trained on.
        test_error: after every epoch, percent of the test images.
        step_ms: median time of `optimizer.step()` alone, milliseconds.
        seconds: time of the whole run.
    """

    method: str
    seed: int
    train_loss: list[float]
    test_error: list[float]
    step_ms: float
    seconds: float


def train(
    name: str,
    method: Method,
    model: nn.Module,
    data: Dataset,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    backend: str | None,
    on_epoch: Callable[[], None],
) -> RunResult:
    """Trains a network in place, with a learning rate that falls to zero along a cosine.

    Args:
        name: key of the method in `METHODS`.
        method: makes the optimizer.
        model: the network, initialised.
        data: what to train and test on.
        seed: draws the order of the batches and the shifts of their images.
        epochs: passes over the training images.
        batch_size: images in a batch.
        backend: of `ScaleAmendedSGD`, None for the fastest.
        on_epoch: called after every epoch.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    optimizer = method.build(model, method.lr, method.weight_decay, backend)
    schedule = CosineAnnealingLR(optimizer, epochs * (len(data.train_images) // batch_size))
    train_loss, test_error, step_times = [], [], []
    for _ in range(epochs):
        model.train()
        losses = []
        for images, labels in batches(data, batch_size, generator):
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            before = time.perf_counter()
            optimizer.step()
            step_times.append(time.perf_counter() - before)
            schedule.step()
            losses.append(loss.detach())
        train_loss.append(torch.stack(losses).mean().item())
        test_error.append(measure_error(model, data))
        on_epoch()
    seconds = time.perf_counter() - start
    return RunResult(name, seed, train_loss, test_error, median(step_times) * 1e3, seconds)


@torch.no_grad()
def measure_error(model: nn.Module, data: Dataset) -> float:
    """Percent of the test images that the network takes for another class."""
    model.eval()
    wrong = model(data.test_images).argmax(dim=1) != data.test_labels
    return 100 * int(wrong.sum()) / len(wrong)
