"""Remark 1 in a residual network that is trained: the spectra of its branches, at first and afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.data import DATASETS, batches
from experiments.hessian.blocks import Sum, sample_spectrum
from experiments.models import initialise

UNITS = 64
BLOCKS = 8
BATCH = 128
STEPS = 200
LR = 0.1
MOMENTUM = 0.9


def residual_network(inputs: int, classes: int, units: int = UNITS, blocks: int = BLOCKS) -> nn.Sequential:
    """Makes a network of pre-activation residual blocks of two layers each, with batch normalization and ReLU."""

    def branch() -> nn.Module:
        halves = [
            (nn.BatchNorm1d(units, affine=False), nn.ReLU(), nn.Linear(units, units, bias=False)) for _ in range(2)
        ]
        return nn.Sequential(*halves[0], *halves[1])

    layers = [nn.Linear(inputs, units, bias=False), *(Sum(nn.Identity(), branch()) for _ in range(blocks))]
    layers += [nn.BatchNorm1d(units, affine=False), nn.ReLU(), nn.Linear(units, classes, bias=False)]
    return nn.Sequential(nn.Flatten(), *layers).double()


def train(model: nn.Module, steps: int, lr: float = LR, seed: int = 0) -> float:
    """Trains on the digits by SGD with momentum; returns the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    losses = []
    for _, (images, labels) in zip(range(steps), endless_batches(seed), strict=False):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def endless_batches(seed: int, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields shuffled batches of the digits, in float64, one epoch after the other."""
    data = DATASETS["digits"]()
    generator = torch.Generator().manual_seed(seed)
    while True:
        for images, labels in batches(data, size, generator):
            yield images.double(), labels


@dataclass(frozen=True)
class OfBlock:
    """The Jacobian A = ∂φ/∂z of a residual block's branch, for some samples of a batch.

    Attributes:
        largest: σ_max(A).
        branch: C(A).
        block: C(I + A).
    """

    largest: list[float]
    branch: list[float]
    block: list[float]


def look(model: nn.Sequential, images: Tensor, samples: int) -> list[OfBlock]:
    """Takes the spectra of all residual blocks of a network and of their branches, for the first samples of a batch."""
    blocks, batch = [], images
    for layer in model:
        if isinstance(layer, Sum):
            branches = [sample_spectrum(layer.branch, batch, index) for index in range(samples)]
            whole = [sample_spectrum(layer, batch, index) for index in range(samples)]
            blocks.append(
                OfBlock(
                    [float(of_one.eigenvalues[-1].sqrt()) for of_one in branches],
                    [of_one.condition for of_one in branches],
                    [of_one.condition for of_one in whole],
                )
            )
        batch = layer(batch).detach()
    return blocks


def take_residual(samples: int = 16, steps: int = STEPS, **sizes: int) -> dict[str, list[OfBlock]]:
    """Looks at the branches of a residual network at initialisation and after training."""
    images, _ = next(endless_batches(seed=0))
    model = residual_network(images[0].numel(), 10, **sizes)
    initialise(model, seed=0)
    looks = {"at initialisation": look(model, images, samples)}
    train(model, steps)
    return looks | {f"after {steps} steps": look(model, images, samples)}
