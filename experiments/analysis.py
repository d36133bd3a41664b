"""What the runs of a comparison say, in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from experiments.compare import TUNED, VARIATIONS, RunResult, Settings
from experiments.methods import Tuned

CONFIDENCE = 0.95
NEAR = 1.0  # points of test error within which a learning rate counts as one of the best
ROUNDING = 1e-9
MARGINS = (0.0, 1.0, 3.0, 10.0)  # points above the test error of the first method, to which epochs are counted


@dataclass(frozen=True)
class Estimate:
    """A mean and the half width of its 95 % interval; NaN where a value was not finite, the width for one value too."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Takes one value for each seed; for a paired difference, the difference of each seed."""
        count, mean = len(values), fmean(values)
        if not math.isfinite(mean):
            return cls(math.nan, math.nan)
        if count == 1:
            return cls(mean, math.nan)
        quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
        return cls(mean, quantile * stdev(values) / math.sqrt(count))

    def format(self, digits: int, sign: str = "") -> str:
        """Variant mean ± half width, or the mean alone; `sign` "+" shows the sign of a positive mean too."""
        interval = f" ± {self.half_width:.{digits}f}" if math.isfinite(self.half_width) else ""
        return f"{self.mean:{sign}.{digits}f}{interval}"


@dataclass(frozen=True)
class Comparison:
    """A comparison that is done.

    Attributes:
        settings: what all runs shared.
        methods: those compared; differences are from the first of them.
        results: one for each seed, variation and method.
    """

    settings: Settings
    methods: Mapping[str, Tuned]
    results: Sequence[RunResult]

    @property
    def title(self) -> str:
        return f"{self.settings.model} on {self.settings.dataset}"

    @property
    def first(self) -> str:
        """Returns the method that the others are held against, key in `METHODS`."""
        return next(iter(self.methods))

    def over_seeds(self, what: str) -> str:
        """Says what its figures are: a mean, and `what` its interval shows; or those of one seed."""
        if len(self.settings.seeds) == 1:
            return f"seed {self.settings.seeds[0]}."
        return f"mean over {len(self.settings.seeds)} seeds {what} its 95 % interval."

    def varied(self, kind: str) -> list[str]:
        """Returns the variations of a kind that were run, keys in `VARIATIONS`."""
        return [name for name in self.settings.variations if VARIATIONS[name].kind == kind]

    def runs(self, method: str, variation: str = TUNED) -> list[RunResult]:
        """Returns the runs of a method at a variation, one for each seed, in the order of the seeds."""
        found = {run.seed: run for run in self.results if (run.method, run.variation) == (method, variation)}
        return [found[seed] for seed in self.settings.seeds]

    def error(self, method: str, variation: str = TUNED) -> Estimate:
        """Estimates the percent of the test images after the last epoch."""
        return Estimate.of([run.test_error[-1] for run in self.runs(method, variation)])

    def difference(self, one: tuple[str, str], other: tuple[str, str]) -> Estimate:
        """Estimates how many points the error of one method at one variation is above another's, paired by seed."""
        pairs = zip(self.runs(*one), self.runs(*other), strict=True)
        return Estimate.of([run.test_error[-1] - base.test_error[-1] for run, base in pairs])


@dataclass(frozen=True)
class Summary:
    """What a method came to in the unchanged setting, in the last epoch.

    Attributes:
        runs: how many seeds.
        difference: of the test error from the first method's with the same seed; None for the first method.
        step_ms: median milliseconds of `optimizer.step()` in each run.
    """

    method: str
    label: str
    lr: float
    weight_decay: float
    runs: int
    train_loss: Estimate
    test_error: Estimate
    difference: Estimate | None
    step_ms: Estimate


def thresholds(comparison: Comparison) -> list[float]:
    """Returns the error at which the first method ends in the mean, and `MARGINS` above it, to count epochs to."""
    end = comparison.error(comparison.first).mean
    return [end + margin for margin in MARGINS]


def epochs_to(errors: Sequence[float], threshold: float) -> float:
    """Returns the first epoch, from 1 on, after which the error is at most the threshold; infinite if there is none."""
    # A threshold that is a mean of errors can be one of them but for its rounding.
    return next((epoch for epoch, error in enumerate(errors, 1) if error <= threshold + ROUNDING), math.inf)


def count_diverged(runs: Sequence[RunResult]) -> int:
    """Counts the runs that ended with a training loss that is not finite."""
    return sum(not math.isfinite(run.train_loss[-1]) for run in runs)


def summarise(comparison: Comparison) -> list[Summary]:
    """Summarises the runs of every method in the unchanged setting."""
    summaries = []
    for name, method in comparison.methods.items():
        runs = comparison.runs(name)
        summaries.append(
            Summary(
                name,
                method.label,
                method.lr,
                method.weight_decay,
                len(runs),
                Estimate.of([run.train_loss[-1] for run in runs]),
                comparison.error(name),
                comparison.difference((name, TUNED), (comparison.first, TUNED)) if name != comparison.first else None,
                Estimate.of([run.step_ms for run in runs]),
            )
        )
    return summaries


def learning_rates(comparison: Comparison, method: str) -> dict[float, Estimate]:
    """Returns the test error at every learning rate that was run, by its factor, in their order."""
    names = (TUNED, *comparison.varied("lr"))
    found = {VARIATIONS[name].lr: comparison.error(method, name) for name in names}
    return dict(sorted(found.items()))


def count_near_best(errors: Mapping[float, Estimate]) -> int:
    """Counts the learning rates that have a mean error within a point of the best one's."""
    best = min(error.mean for error in errors.values())
    return sum(error.mean <= best + NEAR for error in errors.values())
