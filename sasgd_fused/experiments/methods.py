"""The methods that are compared: how each makes its optimizer, and with which learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from sasgd_fused import ScaleAmendedSGD, parameter_groups

MOMENTUM = 0.9  # the paper's, for every method


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        label: its name in the table and the picture.
        lr: learning rate at the first step.
        weight_decay: coefficient of the weight decay.
        build: makes the optimizer from the network, lr, weight decay and the backend (None for the fastest).
    """

    label: str
    lr: float
    weight_decay: float
    build: Callable[[nn.Module, float, float, str | None], Optimizer]


def _sgd(model: nn.Module, lr: float, weight_decay: float, backend: str | None) -> Optimizer:
    # The fused step is torch's fastest, so that times per step compare like with like.
    return torch.optim.SGD(model.parameters(), lr, MOMENTUM, weight_decay=weight_decay, fused=True)


def _paper(model: nn.Module, lr: float, weight_decay: float, backend: str | None) -> Optimizer:
    return ScaleAmendedSGD(parameter_groups(model), lr, MOMENTUM, weight_decay=weight_decay, backend=backend)


def _recommended(model: nn.Module, lr: float, weight_decay: float, backend: str | None) -> Optimizer:
    return ScaleAmendedSGD(
        parameter_groups(model),
        lr,
        MOMENTUM,
        weight_decay=weight_decay,
        norms="freeze",
        head="plain",
        decay="shape",
        backend=backend,
    )


# lr and weight decay: the best of a grid on seeds that the comparison does not use, see docs/experiments.md.
METHODS: dict[str, Method] = {
    "sgd": Method("SGD", lr=0.3, weight_decay=5e-3, build=_sgd),
    "paper": Method("amended, paper", lr=0.03, weight_decay=5e-2, build=_paper),
    "recommended": Method("amended, recommended", lr=0.1, weight_decay=5e-4, build=_recommended),
}
