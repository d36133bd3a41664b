"""Which runs the benchmark has, and which learning rate each method gets.

Every method is tried at the same learning rates, with a seed that the comparison does not use. One set of runs serves
both criteria: the rate is constant, so the loss after N updates and that after T seconds stand on the same curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from experiments.autoencoder.presets import PRESETS
from experiments.autoencoder.training import Curve
from experiments.study.journal import Run
from experiments.study.methods import half_decades

RATES = half_decades(0.03, 11)
TUNING_SEED = 100
SEEDS = (0, 1, 2, 3, 4)

Curves = Mapping[Run, Curve]
# The loss that counts, by a preset's key.
CRITERIA: dict[str, Callable[[str, Curve], float]] = {
    "updates": lambda preset, curve: curve.after_updates(PRESETS[preset].updates),
    "seconds": lambda preset, curve: curve.after_seconds(PRESETS[preset].seconds),
}


def plan_tuning(preset: str, methods: Iterable[str]) -> list[Run]:
    """Returns the runs that learning rates are chosen by."""
    return [Run(preset, method, lr, 0.0, TUNING_SEED, True) for lr in RATES for method in methods]


def plan_evaluation(preset: str, methods: Iterable[str], curves: Curves) -> list[Run]:
    """Returns the runs that are compared: each method with the rate that is the best by each criterion."""
    chosen = {method: {choose(preset, method, criterion, curves) for criterion in CRITERIA} for method in methods}
    return [
        Run(preset, method, lr, 0.0, seed, False)
        for seed in SEEDS
        for method, rates in chosen.items()
        for lr in sorted(rates)
    ]


def choose(preset: str, method: str, criterion: str, curves: Curves) -> float:
    """Returns the learning rate with the lowest loss in tuning; the lowest of several."""
    losses = tuning_losses(preset, method, criterion, curves)
    return min(losses, key=lambda lr: (losses[lr], lr))


def tuning_losses(preset: str, method: str, criterion: str, curves: Curves) -> dict[float, float]:
    """Returns what a method came to at each learning rate, inf where it diverged."""
    runs = {lr: Run(preset, method, lr, 0.0, TUNING_SEED, True) for lr in RATES}
    return {lr: CRITERIA[criterion](preset, curves[run]) for lr, run in runs.items()}


def compared(preset: str, method: str, criterion: str, curves: Curves) -> list[Curve]:
    """Returns the curves of a method at the rate chosen by a criterion, one for each seed."""
    lr = choose(preset, method, criterion, curves)
    return [curves[Run(preset, method, lr, 0.0, seed, False)] for seed in SEEDS]
