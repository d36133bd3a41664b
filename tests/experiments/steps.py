"""A small network and steps with gradients that are drawn for it, for tests of optimizers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.models import initialise

LR, WEIGHT_DECAY = 0.1, 0.02


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5, bias=False),  # of four pixels: where widths match, factors "product" change nothing
    )
    initialise(model, 0)
    return model.double()


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for weight in model.parameters()]


def give_gradients(model: nn.Module, step: int) -> None:
    for weight, gradient in zip(model.parameters(), gradients(model, step), strict=True):
        weight.grad = gradient


def take_steps(model: nn.Module, optimizer: Optimizer, steps: Iterable[int] = range(2)) -> None:
    for step in steps:
        optimizer.zero_grad()
        give_gradients(model, step)
        optimizer.step()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]
