"""DoG, distance over gradients (Ivgi, Hinder and Carmon 2023), with the average of the weights that it needs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

FIRST = 1e-4  # of the distance from the origin; the authors' for networks with batch normalization
GAMMA = 8.0  # the authors', of the polynomial decay average (Shamir and Zhang 2013)
EPS = 1e-8


class DoG(Optimizer):
    """SGD whose rate is the largest distance from the start by the root of the sum of all squared gradients.

    Args:
        params: parameters.
        lr: factor of the rate, 1 in the paper.
        weight_decay: λ, times the weights added to the gradient.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        (group,) = self.param_groups
        self._params: list[Tensor] = group["params"]
        self._start = [param.detach().clone() for param in self._params]
        self._average = [param.detach().clone() for param in self._params]
        self._distance = FIRST * (1 + _norm(self._start))
        self._squares = EPS
        self._steps = 0

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("closure: got one, want None")
        (group,) = self.param_groups
        active = [param for param in self._params if param.grad is not None]
        gradients = [param.grad + group["weight_decay"] * param for param in active]
        moved = [param - start for param, start in zip(self._params, self._start, strict=True)]
        self._distance = max(self._distance, _norm(moved))
        self._squares += _norm(gradients) ** 2
        rate = group["lr"] * self._distance / math.sqrt(self._squares)
        for param, gradient in zip(active, gradients, strict=True):
            param.sub_(rate * gradient)
        self._steps += 1
        share = (1 + GAMMA) / (self._steps + GAMMA)
        for average, param in zip(self._average, self._params, strict=True):
            average.lerp_(param, share)

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the average into the parameters."""
        for average, param in zip(self._average, self._params, strict=True):
            param.copy_(average)


def _norm(tensors: Iterable[Tensor]) -> float:
    """Returns the norm of all tensors as one vector."""
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))
