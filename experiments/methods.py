"""The methods that can be compared: how each makes its optimizer from a learning rate and a weight decay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from pytorch_optimizer import LARS
from torch import nn
from torch.optim import Optimizer

from experiments.muon import make_muon
from sasgd_fused import ScaleAmendedSGD, parameter_groups

MOMENTUM = 0.9  # the paper's, for every method that has one


@dataclass(frozen=True)
class Method:
    """A way to train, its learning rate and weight decay still open.

    Attributes:
        label: its name in tables and pictures.
        build: makes the optimizer from the network, lr, weight decay and the backend of `ScaleAmendedSGD` (None for
            the fastest).
    """

    label: str
    build: Callable[[nn.Module, float, float, str | None], Optimizer]

    def tuned(self, lr: float, weight_decay: float, source: str = "given") -> Tuned:
        return Tuned(self, lr, weight_decay, source)


@dataclass(frozen=True)
class Tuned:
    """A method with its learning rate at the first step, its weight decay, and where these two come from."""

    method: Method
    lr: float
    weight_decay: float
    source: str

    @property
    def label(self) -> str:
        return self.method.label

    def build(self, model: nn.Module, backend: str | None) -> Optimizer:
        return self.method.build(model, self.lr, self.weight_decay, backend)


def _sgd(model: nn.Module, lr: float, weight_decay: float, backend: str | None) -> Optimizer:
    # The fused step is torch's fastest, so that times per step compare like with like.
    return torch.optim.SGD(model.parameters(), lr, MOMENTUM, weight_decay=weight_decay, fused=True)


def _lars(model: nn.Module, lr: float, weight_decay: float, backend: str | None) -> Optimizer:
    # Only the product of rate and trust coefficient counts: at 1 the rate is a layer's relative change before momentum.
    return LARS(model.parameters(), lr, weight_decay, MOMENTUM, trust_coefficient=1.0)


def _adamw(model: nn.Module, lr: float, weight_decay: float, backend: str | None) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay, fused=True)


def _amended(model: nn.Module, lr: float, weight_decay: float, backend: Any, **options: Any) -> ScaleAmendedSGD:
    groups = parameter_groups(model)
    return ScaleAmendedSGD(groups, lr, MOMENTUM, weight_decay=weight_decay, backend=backend, **options)


# What may be otherwise than in the paper, by the name that it has here.
OPTIONS: dict[str, dict[str, str]] = {
    "plain-head": {"head": "plain"},
    "frozen-norms": {"norms": "freeze"},
    "shape-decay": {"decay": "shape"},
    "product": {"factors": "product"},
}
RECOMMENDED = ("plain-head", "frozen-norms", "shape-decay")


def _with_options(label: str, names: tuple[str, ...]) -> Method:
    options: dict[str, Any] = {key: value for name in names for key, value in OPTIONS[name].items()}
    return Method(f"amended, {label}", partial(_amended, **options))


def _variants() -> dict[str, Method]:
    """Returns `paper` with any of `OPTIONS`, as "paper+plain-head+product"; what is recommended has its own name."""
    choices = [names for count in range(1, len(OPTIONS) + 1) for names in combinations(OPTIONS, count)]
    return {
        "+".join(("paper", *names)): _with_options(", ".join(names).replace("-", " "), names)
        for names in choices
        if names != RECOMMENDED
    }


METHODS: dict[str, Method] = {
    "sgd": Method("SGD", _sgd),
    "paper": _with_options("paper", ()),
    "recommended": _with_options("recommended", RECOMMENDED),
    "lars": Method("LARS", _lars),
    "adamw": Method("AdamW", _adamw),
    "muon": Method("Muon", make_muon),
    **_variants(),
}


def why_unavailable(name: str) -> str | None:
    """Returns why a method cannot be built here, or None if it can."""
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        return f"muon needs torch 2.9 or newer, this is {torch.__version__}"
    return None
