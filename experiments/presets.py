"""The comparisons that can be had by name: data set, network, schedule, and each method's learning rate and decay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from experiments.compare import Settings
from experiments.methods import METHODS, Tuned, why_unavailable


@dataclass(frozen=True)
class Preset:
    """What all runs of a comparison share, and what is compared, by key in `METHODS`."""

    settings: Settings
    methods: Mapping[str, Tuned]


def _methods(source: str, rates: Mapping[str, tuple[float, float]]) -> dict[str, Tuned]:
    """Returns methods with learning rate, weight decay and their source, but those that cannot be built here."""
    available = {name: values for name, values in rates.items() if why_unavailable(name) is None}
    return {name: METHODS[name].tuned(*values, source=f"preset, {source}") for name, values in available.items()}


# The paper's, section 4. It does not give the batch size, nor how far images are turned (see data.py).
_PAPER = Settings(model="vgg13", epochs=300, batch_size=128, schedule="plateau")
_OF_PAPER = "those of the paper"

# What `search` found: docs/results.md has the commands.
PRESETS: dict[str, Preset] = {
    "digits": Preset(
        Settings(),
        _methods(
            "best of 20 trials",
            {
                "sgd": (0.347, 3.63e-5),
                "paper": (0.044, 5.43e-4),
                "paper+plain-head": (0.0814, 0.0308),
                "recommended": (0.044, 5.43e-4),
                "lars": (0.0249, 0.367),
                "adamw": (0.0136, 8.86e-4),
                "muon": (0.0476, 6.92e-3),
            },
        ),
    ),
    "noisy-digits": Preset(
        Settings(dataset="noisy-digits"),
        _methods("not tuned", {"sgd": (0.3, 5e-3), "paper": (0.03, 5e-2), "recommended": (0.1, 5e-4)}),
    ),
    "deep-plain": Preset(
        Settings(dataset="noisy-digits", model="deep-plain", epochs=60),
        _methods(
            "best of 24 trials",
            {
                "sgd": (0.0375, 1.68e-4),
                "paper": (0.00506, 6.25e-3),
                "paper+plain-head": (0.00721, 7.27e-4),
                "recommended": (0.00435, 9.0e-3),
                "lars": (0.0041, 0.0111),
                "adamw": (0.0086, 1.51e-4),
                "muon": (0.0249, 0.367),
            },
        ),
    ),
    "resnet": Preset(
        Settings(dataset="noisy-digits", model="resnet"),
        _methods(
            "best of 20 trials",
            {
                "sgd": (0.579, 2.13e-3),
                "paper": (0.209, 4.22e-5),
                "paper+plain-head": (0.305, 1.48e-4),
                "recommended": (0.256, 8.88e-4),
                "lars": (0.0136, 8.86e-4),
                "adamw": (0.0231, 3.71e-5),
                "muon": (0.0495, 0.888),
            },
        ),
    ),
    "paper-cifar10": Preset(
        replace(_PAPER, dataset="cifar10"), _methods(_OF_PAPER, {"sgd": (0.1, 5e-3), "paper": (0.005, 5e-3)})
    ),
    "paper-cifar100": Preset(
        replace(_PAPER, dataset="cifar100"), _methods(_OF_PAPER, {"sgd": (0.1, 5e-3), "paper": (0.1, 5e-3)})
    ),
}
