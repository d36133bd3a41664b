"""Biased random search, as a sampler for Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class BiasedRandomSampler(BaseSampler):
    """Draws settings uniformly and rejects them the likelier, the worse the nearest finished trial was.

    Algorithm 1 of Thomas George, "Factorized second order methods in neural networks", master's thesis, Université de
    Montréal, 2017, section 2.3, with the history H of finished trials and their costs c, smaller is better::

        repeat
            a ~ U(D)                                  one draw of all hyperparameters from their domain
            c_estimate = cost of the trial in H nearest to a
            p = (c_max - c_estimate) / (c_max - c_min)
            x ~ U([0, 1])
        until x < p
        run a, add it and its cost to H

    The listing in the thesis lost the denominator of p, which stands in the text above it. What the thesis leaves open
    is decided so:

    - Uniform means over the logarithm for a distribution with `log=True`, and distances are Euclidean with every range
      scaled to length 1, in the same logarithm; two different categories are at distance 1.
    - While H is empty, or all its costs are equal, p is 0 / 0 and every draw is accepted.
    - Trials that are equally near count by the mean of their costs. Otherwise the search could not end where the
      same settings were tried twice.
    - An infinite cost counts as the worst finite one. Trials that run at the moment, failed or were pruned have no
      cost and are not in H.

    As p is linear in the cost, one trial far worse than all others leaves p near 1 for these: the bias is then
    against the region of that trial alone.

    A parameter that some finished trial lacks, or has with another range, is drawn uniformly, as for Optuna's other
    samplers that draw several parameters together.

    Args:
        seed: of the draws, None for an unpredictable one. Like Optuna's samplers, one with the same seed repeats
            its draws: give every process, and every continuation of a study, a seed of its own.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._uniform = RandomSampler(seed)
        self._generator = np.random.default_rng(seed)

    def reseed_rng(self) -> None:
        """Takes an unpredictable seed; Optuna calls it for every thread of a parallel search."""
        self._uniform.reseed_rng()
        self._generator = np.random.default_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns the parameters that all finished trials share: those of which the history can say something."""
        return intersection_search_space(_history(study))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draws until a draw is accepted.

        Raises:
            RuntimeError: the study has several objectives.
        """
        if not search_space:
            return {}
        history = _history(study)
        costs = _costs(study, history)
        best, worst = costs.min(), costs.max()
        points = np.array([_point(past.params, search_space) for past in history])
        while True:
            params = {
                name: self._uniform.sample_independent(study, trial, name, distribution)
                for name, distribution in search_space.items()
            }
            distances = np.square(points - _point(params, search_space)).sum(axis=1)
            estimate = costs[distances == distances.min()].mean()
            if best == worst or self._generator.uniform() < (worst - estimate) / (worst - best):
                return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws uniformly: for the first trial, and parameters that not all finished trials have."""
        return self._uniform.sample_independent(study, trial, param_name, param_distribution)


def _history(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _costs(study: Study, history: list[FrozenTrial]) -> NDArray[np.float64]:
    """Returns costs to minimise, all finite."""
    sign = -1 if study.direction is StudyDirection.MAXIMIZE else 1
    costs = sign * np.array([trial.value for trial in history], dtype=np.float64)
    finite = costs[np.isfinite(costs)]
    return np.clip(costs, finite.min(), finite.max()) if len(finite) else np.zeros_like(costs)


def _point(params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> NDArray[np.float64]:
    """Returns where settings lie in the domain, every range scaled to length 1."""
    point: list[float] = []
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            index = distribution.to_internal_repr(params[name])
            point += [math.sqrt(0.5) * (index == other) for other in range(len(distribution.choices))]
        else:
            assert isinstance(distribution, (FloatDistribution, IntDistribution))
            scale = math.log if distribution.log else float
            low, high, value = scale(distribution.low), scale(distribution.high), scale(params[name])
            point.append((value - low) / (high - low) if high > low else 0.0)
    return np.array(point)
