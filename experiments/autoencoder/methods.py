"""The methods, each with how it makes its optimizer. None has weight decay: the loss on the training images counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from experiments.autoencoder.kfac import KFAC
from experiments.methods import MOMENTUM, why_unavailable
from experiments.muon import make_muon
from sasgd_fused import ScaleAmendedSGD, parameter_groups
from sasgd_fused.precondition import CovariancePreconditioner

EVERY = 20  # steps between two covariances


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        label: its name in tables and pictures.
        build: makes the optimizer from the network, the learning rate, the damping and a seed, as far as it has them.
    """

    label: str
    build: Callable[[nn.Module, float, float, int], Optimizer]


def _sgd(momentum: float, model: nn.Module, lr: float, *_: Any) -> Optimizer:
    return SGD(model.parameters(), lr, momentum, fused=True)


def _preconditioned(
    momentum: float, options: dict[str, Any], model: nn.Module, lr: float, damping: float, *_: Any
) -> Optimizer:
    preconditioner = CovariancePreconditioner(model, every=EVERY, damping=damping, **options)
    optimizer = _sgd(momentum, model, lr)
    optimizer.register_step_pre_hook(lambda *_: preconditioner.step())
    return optimizer


def _kfac(momentum: float, model: nn.Module, lr: float, damping: float, seed: int) -> Optimizer:
    # Not the numbers that the weights were drawn from.
    return KFAC(model, lr, momentum=momentum, every=EVERY, damping=damping, seed=2**31 + seed)


def _amended(options: dict[str, Any], model: nn.Module, lr: float, *_: Any) -> Optimizer:
    return ScaleAmendedSGD(parameter_groups(model), lr, MOMENTUM, **options)


def _adamw(model: nn.Module, lr: float, *_: Any) -> Optimizer:
    return AdamW(model.parameters(), lr, weight_decay=0.0, fused=True)


def _muon(model: nn.Module, lr: float, *_: Any) -> Optimizer:
    return make_muon(model, lr, 0.0)


_MAX = {"alpha": "max", "loss_reduction": "mean"}
_ALL = {
    "sgd-plain": Method("SGD without momentum", partial(_sgd, 0.0)),
    "sgd": Method("SGD", partial(_sgd, MOMENTUM)),
    "relative": Method("relative", partial(_amended, {"scale": "relative"})),
    "paper": Method("paper", partial(_amended, {})),
    "centred-plain": Method("centred without momentum", partial(_preconditioned, 0.0, {"inverse": False})),
    "centred": Method("centred", partial(_preconditioned, MOMENTUM, {"inverse": False})),
    "covariance-plain": Method("covariance without momentum", partial(_preconditioned, 0.0, {})),
    "covariance": Method("covariance", partial(_preconditioned, MOMENTUM, {})),
    "covariance-max": Method("covariance, α max", partial(_preconditioned, MOMENTUM, _MAX)),
    "kfac-plain": Method("KFAC without momentum", partial(_kfac, 0.0)),
    "kfac": Method("KFAC", partial(_kfac, MOMENTUM)),
    "adamw": Method("AdamW", _adamw),
    "muon": Method("Muon", _muon),
}
METHODS: dict[str, Method] = {name: method for name, method in _ALL.items() if why_unavailable(name) is None}
