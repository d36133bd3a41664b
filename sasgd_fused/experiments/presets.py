"""The comparisons that can be had by name: data set, network, schedule, and each method's learning rate and decay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sasgd_fused.experiments.compare import Settings
from sasgd_fused.experiments.methods import METHODS, Method


@dataclass(frozen=True)
class Preset:
    """A comparison with a name.

    Attributes:
        settings: what all runs share.
        methods: what is compared, by key in `METHODS`.
    """

    settings: Settings
    methods: Mapping[str, Method]


def _methods(**rates: tuple[float, float]) -> dict[str, Method]:
    """Methods with learning rate and weight decay."""
    return {name: replace(METHODS[name], lr=lr, weight_decay=decay) for name, (lr, decay) in rates.items()}


# The paper's, section 4. It does not give the batch size, nor how far images are turned (see cifar.py).
_PAPER = Settings(model="vgg13", epochs=300, batch_size=128, schedule="plateau")

PRESETS: dict[str, Preset] = {
    "digits": Preset(Settings(), {name: METHODS[name] for name in ("sgd", "paper", "recommended")}),
    "noisy-digits": Preset(
        Settings(dataset="noisy-digits"), _methods(sgd=(0.3, 5e-3), paper=(0.03, 5e-2), recommended=(0.1, 5e-4))
    ),
    "deep-plain": Preset(
        Settings(dataset="noisy-digits", model="deep-plain"),
        _methods(sgd=(0.1, 5e-3), paper=(0.01, 5e-3), recommended=(0.01, 5e-3)),
    ),
    "resnet": Preset(
        Settings(dataset="noisy-digits", model="resnet"),
        _methods(sgd=(0.3, 5e-3), paper=(0.03, 5e-2), recommended=(0.1, 5e-4)),
    ),
    "paper-cifar10": Preset(replace(_PAPER, dataset="cifar10"), _methods(sgd=(0.1, 5e-3), paper=(0.005, 5e-3))),
    "paper-cifar100": Preset(replace(_PAPER, dataset="cifar100"), _methods(sgd=(0.1, 5e-3), paper=(0.1, 5e-3))),
}
