"""Biased random search: the thesis's probabilities, better points than uniform search, and Optuna's ways of use."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState, create_trial

from experiments.biased_random import BiasedRandomSampler

pytestmark = pytest.mark.usefixtures("quiet_optuna")

UNIT = {"x": FloatDistribution(0, 1)}
DOMAIN = {"lr": FloatDistribution(1e-4, 10, log=True), "weight_decay": FloatDistribution(1e-5, 1, log=True)}
COMPLETE = (TrialState.COMPLETE,)


def study_with(domain: dict[str, BaseDistribution], *history: tuple[Any, float], direction: str = "minimize") -> Study:
    (name,) = domain
    study = optuna.create_study(sampler=BiasedRandomSampler(0), direction=direction)
    for value, cost in history:
        study.add_trial(create_trial(params={name: value}, distributions=domain, value=cost))
    return study


def draw(study: Study, domain: dict[str, BaseDistribution], count: int = 2000) -> list[Any]:
    """Draws from the same history each time: the trials stay without a cost."""
    (name,) = domain
    return [study.ask(domain).params[name] for _ in range(count)]


def minimise(sampler: BaseSampler, trials: int, study: Study | None = None) -> Study:
    if study is None:
        study = optuna.create_study()
    study.sampler = sampler
    for _ in range(trials):
        trial = study.ask(DOMAIN)
        study.tell(trial, error(**trial.params))
    return study


def error(lr: float, weight_decay: float) -> float:
    """A valley in a plateau, as the error in percent is over these two; lowest at 0.1 and 1e-3."""
    return 90 * (1 - math.exp(-((math.log10(lr) + 1) ** 2 + (math.log10(weight_decay) + 3) ** 2 / 4) / 2))


@pytest.mark.parametrize(("sign", "direction"), [(1, "minimize"), (-1, "maximize")])
def test_draws_are_accepted_as_algorithm_1_says(sign: int, direction: str) -> None:
    # Nearest are they below 0.3, to 0.7 and above it; p = 1, 1/4, 0. Shares: 0.3, 0.4 / 4 and 0, divided by their sum.
    study = study_with(UNIT, (0.1, sign * 2.0), (0.5, sign * 5.0), (0.9, sign * 6.0), direction=direction)
    values = np.array(draw(study, UNIT))
    assert values.max() < 0.7
    assert (values < 0.3).mean() == pytest.approx(0.75, abs=0.03)  # three standard errors


def test_distances_are_logarithmic_where_the_distribution_is() -> None:
    domain = {"x": FloatDistribution(1e-4, 1, log=True)}
    values = np.array(draw(study_with(domain, (1e-3, 0.0), (1e-1, 1.0)), domain, 500))
    assert 8e-3 < values.max() < 1e-2
    assert (values < 1e-3).mean() == pytest.approx(0.5, abs=0.07)


def test_every_range_counts_alike() -> None:
    domain = {"a": FloatDistribution(0, 1000), "b": FloatDistribution(0, 1)}
    study = optuna.create_study(sampler=BiasedRandomSampler(0))
    for params, cost in (({"a": 450.0, "b": 0.25}, 0.0), ({"a": 550.0, "b": 0.75}, 1.0)):
        study.add_trial(create_trial(params=params, distributions=domain, value=cost))
    draws = [study.ask(domain).params for _ in range(300)]
    # b tells the two more than a does: the border goes from b = 0.6 at a = 0 to 0.4 at a = 1000.
    assert all(params["b"] < 0.6 - 0.2 * params["a"] / 1000 + 1e-9 for params in draws)
    assert max(params["a"] for params in draws) > 950


@pytest.mark.parametrize("history", [(), ((0.2, 3.0),), ((0.2, 3.0), (0.9, 3.0)), ((0.2, math.inf),)])
def test_a_history_that_tells_nothing_leaves_draws_uniform(history: tuple[tuple[float, float], ...]) -> None:
    values = np.sort(draw(study_with(UNIT, *history), UNIT, 1000))
    assert np.abs(values - np.linspace(0, 1, 1000)).max() < 0.05  # Kolmogorov and Smirnov's bound for 1 %: 0.0515


def test_infinite_costs_are_as_the_worst() -> None:
    values = draw(study_with(UNIT, (0.1, 0.0), (0.5, 1.0), (0.9, math.inf)), UNIT, 300)
    assert 0.25 < max(values) < 0.3


def test_only_finished_trials_are_history() -> None:
    study = study_with(UNIT, (0.25, 0.0), (0.75, 1.0))
    for state in (TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING):
        study.add_trial(create_trial(params={"x": 0.1}, distributions=UNIT, state=state))
    values = draw(study, UNIT, 300)
    assert min(values) < 0.05
    assert 0.45 < max(values) < 0.5


def test_the_search_ends_where_the_same_settings_were_good_and_bad() -> None:
    # With one of the equally near trials alone, no draw could ever be accepted.
    domain = {"x": IntDistribution(0, 1)}
    values = draw(study_with(domain, (0, 1.0), (0, 0.0), (1, 1.0)), domain, 100)
    assert set(values) == {0}


def test_categories_are_near_themselves_alone() -> None:
    domain = {"x": CategoricalDistribution(("a", "b", "c"))}
    values = draw(study_with(domain, ("a", 1.0), ("b", 0.0)), domain, 900)
    # c is as far from a as from b: p = 1/2
    assert values.count("a") == 0
    assert values.count("b") / 900 == pytest.approx(2 / 3, abs=0.05)


def test_it_finds_better_points_than_uniform_search() -> None:
    searches, trials = 100, 40
    biased = np.array([minimise(BiasedRandomSampler(seed), trials).best_value for seed in range(searches)])
    uniform = np.array([minimise(RandomSampler(1000 + seed), trials).best_value for seed in range(searches)])
    # Mann and Whitney's test, one-sided: how often a biased search ends lower. 1/2 if there is no difference.
    lower = (biased[:, None] < uniform).mean()
    standard_error = math.sqrt((2 * searches + 1) / (12 * searches**2))
    assert lower - 0.5 > 3 * standard_error


def test_the_seed_fixes_the_search() -> None:
    first, again, other = (minimise(BiasedRandomSampler(seed), 12).trials for seed in (3, 3, 4))
    assert [trial.params for trial in first] == [trial.params for trial in again]
    assert not {trial.params["lr"] for trial in first} & {trial.params["lr"] for trial in other}


def test_no_seed_is_another_one_each_time() -> None:
    first, other = (minimise(BiasedRandomSampler(), 3).trials for _ in range(2))
    assert not {trial.params["lr"] for trial in first} & {trial.params["lr"] for trial in other}


def test_threads_share_a_study_and_draw_differently() -> None:
    study = optuna.create_study(sampler=BiasedRandomSampler(0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=24, n_jobs=3)
    assert len({trial.params["x"] for trial in study.get_trials(states=COMPLETE)}) == 24


def test_a_resumed_study_keeps_its_history(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")

    def open_study(seed: int) -> Study:
        storage = JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
        sampler = BiasedRandomSampler(seed)
        return optuna.create_study(storage=storage, study_name="a", load_if_exists=True, sampler=sampler)

    study = open_study(0)
    for value, cost in ((0.25, 0.0), (0.75, 1.0)):
        study.add_trial(create_trial(params={"x": value}, distributions=UNIT, value=cost))
    assert 0.4 < max(draw(open_study(1), UNIT, 40)) < 0.5


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=BiasedRandomSampler(0))
    study.add_trial(create_trial(params={"x": 0.5}, distributions=UNIT, values=[1.0, 2.0]))
    with pytest.raises(RuntimeError, match="single direction"):
        study.ask(UNIT)
