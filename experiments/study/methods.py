"""The methods of the study, each with the learning rates and weight decays among which it is tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pytorch_optimizer import DAdaptAdam, DAdaptSGD, Prodigy, ScheduleFreeSGD
from torch import nn
from torch.optim import Optimizer

from experiments.methods import METHODS, MOMENTUM
from experiments.study.dog import DoG
from experiments.study.relative import RelativeSGD
from sasgd_fused import ScaleAmendedSGD, parameter_groups

DECAY = 5e-4
DECAYS = (5e-4, 5e-3, 2e-2)
DECOUPLED_DECAY = 1e-2  # torch's default for AdamW


@dataclass(frozen=True)
class StudiedMethod:
    """A way to train, and among what it is tuned.

    Attributes:
        label: its name in tables and pictures.
        rates: learning rates, half a decade from each other.
        decays: weight decays.
        build: makes the optimizer from the network, learning rate and weight decay.
        averages: it ends with an average of the weights, by its `eval`, which takes the place of a schedule.
    """

    label: str
    rates: tuple[float, ...]
    decays: tuple[float, ...]
    build: Callable[[nn.Module, float, float], Optimizer]
    averages: bool = False


def half_decades(middle: float, count: int = 7) -> tuple[float, ...]:
    """Returns an odd number of learning rates around one, rounded to two digits."""
    return tuple(float(f"{middle * 10 ** ((place - count // 2) / 2):.2g}") for place in range(count))


def _known(name: str, model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return METHODS[name].build(model, lr, weight_decay, None)


def _recommended(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    options: dict[str, Any] = {"norms": "freeze", "head": "plain", "decay": "shape", "output_width": "mean"}
    return ScaleAmendedSGD(parameter_groups(model), lr, MOMENTUM, weight_decay=weight_decay, **options)


def _unit(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    factors = {name: 1.0 for name, param in model.named_parameters() if param.dim() >= 2}
    groups = parameter_groups(model)
    return ScaleAmendedSGD(groups, lr, MOMENTUM, weight_decay=weight_decay, head="plain", factors=factors)


def _relative(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return ScaleAmendedSGD(parameter_groups(model), lr, MOMENTUM, weight_decay=weight_decay, scale="relative")


def _changed(options: dict[str, Any], model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return RelativeSGD(parameter_groups(model), lr, MOMENTUM, weight_decay, **options)


def _of_all(make: Callable[..., Optimizer], model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return make(list(model.parameters()), lr, weight_decay=weight_decay)


_RELATIVE_RATES = half_decades(0.3)
_FREE_RATES = half_decades(1.0, 3)  # of methods that find the rate themselves: factors of it

STUDIED: dict[str, StudiedMethod] = {
    # More rates, as the others are measured by it: initial weights times 10 want its rate times 100.
    "sgd": StudiedMethod("SGD", half_decades(0.3, 9), (DECAY,), partial(_known, "sgd")),
    "sgd-decay": StudiedMethod("SGD, decay tuned", half_decades(0.3), DECAYS, partial(_known, "sgd")),
    "paper": StudiedMethod("paper", half_decades(0.03), (DECAY,), partial(_known, "paper")),
    "plain-head": StudiedMethod("plain head", half_decades(0.095), (DECAY,), partial(_known, "paper+plain-head")),
    "recommended": StudiedMethod("recommended", half_decades(0.3), (DECAY,), _recommended),
    "unit": StudiedMethod("unit", half_decades(0.3), (DECAY,), _unit),
    "relative": StudiedMethod("relative", _RELATIVE_RATES, (DECAY,), _relative),
    "lars": StudiedMethod("LARS", half_decades(0.0095), (DECAY,), partial(_known, "lars")),
    "adamw": StudiedMethod("AdamW", half_decades(0.0095), (DECOUPLED_DECAY,), partial(_known, "adamw")),
    "muon": StudiedMethod("Muon", half_decades(0.0095), (DECOUPLED_DECAY,), partial(_known, "muon")),
    "prodigy": StudiedMethod(
        "Prodigy",
        _FREE_RATES,
        (DECOUPLED_DECAY,),
        partial(_of_all, partial(Prodigy, bias_correction=True, safeguard_warmup=True)),
    ),
    "dadapt-sgd": StudiedMethod("D-Adapt SGD", _FREE_RATES, (DECAY,), partial(_of_all, DAdaptSGD)),
    "dadapt-adam": StudiedMethod(
        "D-Adapt Adam", _FREE_RATES, (DECOUPLED_DECAY,), partial(_of_all, partial(DAdaptAdam, weight_decouple=True))
    ),
    "dog": StudiedMethod("DoG", _FREE_RATES, (DECAY,), partial(_of_all, DoG), averages=True),
    "schedulefree-sgd": StudiedMethod(
        "schedule-free SGD", half_decades(0.95), (DECAY,), partial(_of_all, ScheduleFreeSGD), averages=True
    ),
}


def _ablation(label: str, decays: tuple[float, ...] = (DECAY,), **options: Any) -> StudiedMethod:
    return StudiedMethod(label, _RELATIVE_RATES, decays, partial(_changed, options))


# What is changed of "relative", one thing at a time.
ABLATIONS: dict[str, StudiedMethod] = {
    # Half-decades are wide steps where a small difference counts.
    "between": StudiedMethod("rates between", (0.17, 0.53), (DECAY,), _relative),
    "linear-between": StudiedMethod(
        "1/B, rates between", (0.53, 1.7), (DECAY,), partial(_changed, {"depth": "linear"})
    ),
    "beta-0.99-between": StudiedMethod(
        "β = 0.99, rates between", (0.53, 1.7), (DECAY,), partial(_changed, {"beta": 0.99})
    ),
    "no-fan-in": StudiedMethod("without 1/√f", half_decades(0.03), (DECAY,), partial(_changed, {"fan_in": False})),
    "depth-linear": _ablation("1/B", depth="linear"),
    "depth-none": _ablation("without 1/√B", depth="none"),
    "beta-0": _ablation("β = 0", beta=0.0),
    "beta-0.5": _ablation("β = 0.5", beta=0.5),
    "beta-0.99": _ablation("β = 0.99", beta=0.99),
    "exact": _ablation("exact norms", exact=True),
    "head-plain": _ablation("plain head", head="plain"),
    "vectors-0.1": _ablation("vectors 0.1", vector_share=0.1),
    "vectors-0.01": _ablation("vectors 0.01", vector_share=0.01),
    "vectors-plain": _ablation("vectors plain", vectors="plain", vector_share=1.0),
    "vectors-plain-0.1": _ablation("vectors plain, a tenth", vectors="plain", vector_share=0.1),
    "no-decay": _ablation("without decay", (0.0,)),
    "decay-tuned": _ablation("decay tuned", DECAYS),
    "decay-shape": _ablation("decay by shape", DECAYS, decay="shape"),
    "decay-decoupled": _ablation("decoupled decay", tuple(10 * decay for decay in DECAYS), decay="decoupled"),
    # β = 0.9 bounds the growth by 10 as it is.
    "growth-1": _ablation("growth 1", growth=1.0),
    "growth-4": _ablation("growth 4", growth=4.0),
}
