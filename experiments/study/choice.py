"""Which learning rate and weight decay each method gets, by its errors on the images for tuning.

A method gets one pair for all settings, which is the question of the study, and one for each setting, to compare with.
The best of several errors is too low by chance. It is only used to choose: what is chosen runs again with other seeds
on other images, and those errors are compared, so that no method gains by having been tried more often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import NamedTuple

from experiments.study.journal import Run
from experiments.study.methods import StudiedMethod
from experiments.study.run import Outcome

TUNING_SEEDS = (100, 101)


class Rates(NamedTuple):
    """A learning rate and a weight decay."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Tuned:
    """What the runs for tuning say of a method.

    Attributes:
        errors: mean percent over the seeds, by setting and by what was tried; of settings whose runs are all done.
        for_all: the rates with the lowest mean over these settings of the error above the best that any method has
            there. What is subtracted is the same for all rates, so this is the lowest mean error. None without a
            setting.
        for_each: the rates with the lowest error, by setting.
    """

    errors: Mapping[str, Mapping[Rates, float]]
    for_all: Rates | None
    for_each: Mapping[str, Rates]


def grid(method: StudiedMethod) -> list[Rates]:
    """Returns what a method is tried with."""
    return [Rates(lr, weight_decay) for lr, weight_decay in product(method.rates, method.decays)]


def tune(
    outcomes: Mapping[Run, Outcome], settings: Mapping[str, object], methods: Mapping[str, StudiedMethod]
) -> dict[str, Tuned]:
    """Chooses the rates of each method.

    Args:
        outcomes: of a journal.
        settings: what the rates for all are chosen by, as far as the runs of a method are done.
        methods: by their names in the journal.
    """
    tuned = {}
    for name, method in methods.items():
        errors = _mean_errors(outcomes, settings, name, grid(method))
        for_each = {setting: _lowest(of_setting) for setting, of_setting in errors.items()}
        means = {rates: fmean(of_setting[rates] for of_setting in errors.values()) for rates in grid(method) if errors}
        tuned[name] = Tuned(errors, _lowest(means) if means else None, for_each)
    return tuned


def _mean_errors(
    outcomes: Mapping[Run, Outcome], settings: Mapping[str, object], method: str, tried: list[Rates]
) -> dict[str, dict[Rates, float]]:
    errors = {}
    for setting in settings:
        runs = {rates: [Run(setting, method, *rates, seed, True) for seed in TUNING_SEEDS] for rates in tried}
        if all(run in outcomes for of_rates in runs.values() for run in of_rates):
            errors[setting] = {rates: fmean(outcomes[run].test_error for run in runs[rates]) for rates in tried}
    return errors


def _lowest(errors: Mapping[Rates, float]) -> Rates:
    """Returns the rates with the lowest error; of several, the lowest rates."""
    return min(errors, key=lambda rates: (errors[rates], rates))
