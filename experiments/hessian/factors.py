"""Backward factors of networks that are no chain: the rules beside the measurement, and training with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from experiments.analysis import Estimate
from experiments.data import DATASETS
from experiments.hessian.residual import residual_network
from experiments.methods import MOMENTUM
from experiments.models import MODELS, initialise
from experiments.study.networks import depthwise
from experiments.train import train
from sasgd_fused import ScaleAmendedSGD, parameter_groups
from sasgd_fused.local import graph_factors, measured_factors, output_shares

SHAPE, CLASSES = (1, 8, 8), 10
PROBES = 64
SAMPLES = 96
RATES = (0.03, 0.1, 0.3, 1.0)
SEEDS = range(4)
EPOCHS = 12
BATCH = 64


class Concatenating(nn.Module):
    """A layer of a dense network, z → (z, ReLU(W z)) with batch normalization before the ReLU."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, growth, bias=False)
        self.norm = nn.BatchNorm1d(growth, affine=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, relu(self.norm(self.layer(inputs)))], 1)


def residual() -> nn.Sequential:
    """Makes eight residual blocks."""
    return residual_network(math.prod(SHAPE), CLASSES).float()


def concatenating(units: int = 32, growth: int = 16, layers: int = 10) -> nn.Sequential:
    """Makes a network whose layers add their outputs to what there is."""
    dense = [Concatenating(units + growth * place, growth) for place in range(layers)]
    first = nn.Linear(math.prod(SHAPE), units, bias=False), nn.BatchNorm1d(units, affine=False), nn.ReLU()
    head = nn.Linear(units + growth * layers, CLASSES, bias=False)
    return nn.Sequential(nn.Flatten(), *first, *dense, head)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG, 6 convolutions": lambda: MODELS["vgg7"](1, CLASSES),
    "MLP, 17 hidden layers": lambda: MODELS["deep-plain"](1, CLASSES),
    "pre-activation ResNet, 6 blocks": lambda: MODELS["resnet"](1, CLASSES),
    # On one pixel a depthwise weight in front of batch normalization has no influence: images twice as large.
    "depthwise, 6 pairs": lambda: nn.Sequential(nn.Upsample(scale_factor=2), depthwise((1, 16, 16), CLASSES, 16, 6)),
    "residual MLP, 8 blocks": residual,
    "concatenating MLP, 10 layers": concatenating,
}
TRAINED = ("residual MLP, 8 blocks", "concatenating MLP, 10 layers")


@dataclass(frozen=True)
class Misfit:
    """How far a rule's factors are from those measured, over the hidden layers, up to a common factor.

    Attributes:
        typical: 2 to the power of the root mean square of log₂(measured / rule); 1 is right everywhere.
        span: the largest quotient over the smallest.
    """

    typical: float
    span: float

    @classmethod
    def of(cls, quotients: Iterable[float]) -> Misfit:
        """Takes measured / rule of each hidden layer."""
        logarithms = torch.tensor([math.log2(quotient) for quotient in quotients])
        deviations = logarithms - logarithms.mean()
        return cls(2 ** float(deviations.square().mean().sqrt()), 2 ** float(deviations.max() - deviations.min()))


def make_network(name: str, seed: int) -> nn.Module:
    """Makes one of `NETWORKS` with weights that follow from the seed."""
    model = NETWORKS[name]()
    initialise(model, seed)
    return model


def first_digits(samples: int = SAMPLES) -> Tensor:
    """Returns images of digits, (samples, 1, 8, 8)."""
    images, _ = DATASETS["digits"]().test
    return images[:samples]


def take_misfits(name: str, probes: int = PROBES) -> dict[str, Misfit]:
    """Compares the factors of each rule with the measured ones, in a new network on digits."""
    model, images = make_network(name, seed=0), first_digits()
    shares = output_shares(model, images, probes)
    rules: dict[str, Mapping[str, float]] = {
        "width": {row.name: row.width_factor for row in shares},
        "product": _product(model),
        "graph, without gains": graph_factors(model, images, gains=False),
        "graph": graph_factors(model, images),
    }
    hidden = [row for row in shares if not row.is_head]
    return {rule: Misfit.of(row.backward_factor / found[row.name] for row in hidden) for rule, found in rules.items()}


def _product(model: nn.Module) -> dict[str, float]:
    """Returns the factors of (22)-(24) literally, in the order of the parameters."""
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.0, factors="product", backend="reference")
    return {row.name: row.backward_factor for row in optimizer.layer_report() if row.backward_factor is not None}


@dataclass(frozen=True)
class Rates:
    """Test error in percent by learning rate."""

    errors: dict[float, Estimate]

    @property
    def best(self) -> float:
        """The rate with the lowest mean error."""
        return min(self.errors, key=lambda lr: self.errors[lr].mean)


RULES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "width": lambda model, images: "width",
    "graph": graph_factors,
    "measured": measured_factors,
}


def take_rates(
    name: str, rule: str, rates: Sequence[float] = RATES, seeds: Sequence[int] = SEEDS, epochs: int = EPOCHS
) -> Rates:
    """Trains a network on noisy digits by the factors of a rule, taken once at initialisation."""
    data, images = DATASETS["noisy-digits"](), first_digits()
    errors: dict[float, list[float]] = {lr: [] for lr in rates}
    for seed in seeds:
        factors = RULES[rule](make_network(name, seed), images)
        for lr, of_lr in errors.items():
            model = make_network(name, seed)
            groups = parameter_groups(model)
            optimizer = ScaleAmendedSGD(
                groups, lr, MOMENTUM, factors=factors, norms="freeze", head="plain", decay="shape"
            )
            of_lr.append(train(model, optimizer, data, seed=seed, epochs=epochs, batch_size=BATCH).test_error[-1])
    return Rates({lr: Estimate.of(of_lr) for lr, of_lr in errors.items()})
