"""What the runs of the study say, in numbers.

The excess of a method at a setting is its test error less a reference's, seed by seed. Both are of the runs for
evaluation: their seeds and images are others than those that the rates, and the method that is the best of a setting,
were chosen by. So no minimum is taken of the figures that are compared, and that of many methods tried is no better
than it is (the winner's curse).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.analysis import NEAR, Estimate
from experiments.study.choice import Rates, Tuned
from experiments.study.journal import Run
from experiments.study.plan import EVALUATION_SEEDS
from experiments.study.run import Outcome

BySetting = Mapping[str, Sequence[float]]  # test errors, one for each seed, by setting


@dataclass(frozen=True)
class Evaluated:
    """The test errors of methods at the settings where all of them have all their runs.

    Attributes:
        settings: those.
        for_all: with each method's rates for all settings, by method.
        for_each: with its rates for each setting, by method.
        best: the method with the lowest tuning error, by setting.
    """

    settings: Sequence[str]
    for_all: Mapping[str, BySetting]
    for_each: Mapping[str, BySetting]
    best: Mapping[str, str]

    @property
    def of_best(self) -> BySetting:
        """Returns the test errors of the best tuned method of each setting."""
        return {setting: self.for_each[self.best[setting]][setting] for setting in self.settings}


@dataclass(frozen=True)
class Excess:
    """How far a method is above a reference.

    Attributes:
        by_setting: at each setting; the interval is over the seeds.
        mean: over the settings, and so is its interval.
        worst: the setting where it is the most.
        near: at how many settings it is at most `NEAR`.
    """

    by_setting: Mapping[str, Estimate]
    mean: Estimate
    worst: str
    near: int


def evaluate(outcomes: Mapping[Run, Outcome], tuned: Mapping[str, Tuned]) -> Evaluated:
    """Returns the test errors of methods at the settings where all of them have been tuned and evaluated."""
    for_all: dict[str, dict[str, list[float]]] = {name: {} for name in tuned}
    for_each: dict[str, dict[str, list[float]]] = {name: {} for name in tuned}
    for name, of_method in tuned.items():
        for setting, own in of_method.for_each.items():
            assert of_method.for_all is not None
            with_all, with_own = (_test_errors(outcomes, setting, name, rates) for rates in (of_method.for_all, own))
            if with_all and with_own:
                for_all[name][setting], for_each[name][setting] = with_all, with_own
    settings = _in_all(for_all)
    best = {setting: min(tuned, key=lambda name: min(tuned[name].errors[setting].values())) for setting in settings}
    return Evaluated(settings, for_all, for_each, best)


def compare(errors: BySetting, reference: BySetting, settings: Sequence[str]) -> Excess:
    """Returns the excess of errors over a reference's at some settings, of which there must be one."""
    by_setting = {
        setting: Estimate.of([one - other for one, other in zip(errors[setting], reference[setting], strict=True)])
        for setting in settings
    }
    means = {setting: excess.mean for setting, excess in by_setting.items()}
    near = sum(mean <= NEAR for mean in means.values())
    return Excess(by_setting, Estimate.of(list(means.values())), max(means, key=lambda name: means[name]), near)


def tuned_by_all(tuned: Mapping[str, Tuned]) -> list[str]:
    """Returns the settings where all methods have all runs for tuning."""
    return _in_all({name: of_method.errors for name, of_method in tuned.items()})


def above_best(tuned: Mapping[str, Tuned], settings: Iterable[str]) -> dict[str, dict[Rates, dict[str, float]]]:
    """Returns the tuning errors above the lowest that any method has at a setting, by method, rates and setting.

    As the lowest of many errors is too low by chance, they are too high.
    """
    settings = list(settings)
    lowest = {
        setting: min(min(of_method.errors[setting].values()) for of_method in tuned.values()) for setting in settings
    }
    return {
        name: {
            rates: {setting: of_method.errors[setting][rates] - lowest[setting] for setting in settings}
            for rates in next(iter(of_method.errors.values()), {})
        }
        for name, of_method in tuned.items()
    }


def _in_all(entries: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Returns the settings that every method has an entry for, in the order of the first."""
    first, *others = entries.values() or ({},)
    return [setting for setting in first if all(setting in other for other in others)]


def _test_errors(outcomes: Mapping[Run, Outcome], setting: str, method: str, rates: Rates) -> list[float] | None:
    """Returns the errors for evaluation, in the order of the seeds, if all are there."""
    runs = [Run(setting, method, *rates, seed, False) for seed in EVALUATION_SEEDS]
    return [outcomes[run].test_error for run in runs] if all(run in outcomes for run in runs) else None
