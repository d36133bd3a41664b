"""The figures of the study, against what the made-up errors are made of."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
from scipy.stats import t

from experiments.study.choice import Rates, tune
from experiments.study.journal import Run
from experiments.study.methods import StudiedMethod
from experiments.study.plan import EVALUATION_SEEDS
from experiments.study.run import Outcome
from experiments.study.summary import above_best, compare, evaluate, tuned_by_all
from tests.experiments.study.made_up import METHODS, SETTINGS, build, make_setting, noise, run_all


def test_an_excess_is_paired_by_seed() -> None:
    errors = {"a": [11.0, 13.0, 12.0], "b": [30.0, 20.0, 13.0], "c": [9.0, 19.0, 32.0]}
    reference = {"a": [10.0, 12.0, 11.0], "b": [25.0, 18.0, 11.0], "c": [10.0, 20.0, 30.0], "d": [0.0, 0.0, 0.0]}
    excess = compare(errors, reference, ["a", "b", "c"])
    assert excess.by_setting["a"].mean == 1
    assert excess.by_setting["a"].half_width == 0
    assert excess.by_setting["b"].mean == 3
    deviation = math.sqrt(((5 - 3) ** 2 + (2 - 3) ** 2 + (2 - 3) ** 2) / 2)
    assert excess.by_setting["b"].half_width == pytest.approx(t.ppf(0.975, 2) * deviation / math.sqrt(3))
    assert excess.by_setting["c"].mean == 0
    assert (excess.worst, excess.near) == ("b", 2)
    deviation = math.sqrt(((1 - 4 / 3) ** 2 + (3 - 4 / 3) ** 2 + (0 - 4 / 3) ** 2) / 2)
    assert excess.mean.mean == pytest.approx(4 / 3)
    assert excess.mean.half_width == pytest.approx(t.ppf(0.975, 2) * deviation / math.sqrt(3))


def test_errors_are_those_for_evaluation_at_the_rates_of_tuning() -> None:
    outcomes = run_all(SETTINGS, METHODS)
    evaluated = evaluate(outcomes, tune(outcomes, SETTINGS, METHODS))
    assert list(evaluated.settings) == list(SETTINGS)
    assert set(evaluated.best.values()) == {"relative"}
    for place, setting in enumerate(SETTINGS):
        seeds = [seed / 10 for seed in EVALUATION_SEEDS]
        assert evaluated.for_all["sgd"][setting] == pytest.approx([20 - 0.05 + place + seed for seed in seeds])
        assert evaluated.for_each["sgd-decay"][setting] == pytest.approx([20 - 0.5 + place + seed for seed in seeds])
        assert evaluated.of_best[setting] == pytest.approx([18 - 0.05 + place + seed for seed in seeds])


def test_the_best_of_a_setting_is_the_best_in_tuning() -> None:
    outcomes = run_all(SETTINGS, METHODS)
    for seed in EVALUATION_SEEDS:
        run = Run("d1", "relative", 0.3, 5e-4, seed, False)
        outcomes[run] = Outcome(70.0 + seed, 1.0, 1.0)
    evaluated = evaluate(outcomes, tune(outcomes, SETTINGS, METHODS))
    assert evaluated.best["d1"] == "relative"
    assert evaluated.of_best["d1"] == [70.0, 71.0, 72.0, 73.0, 74.0]
    assert compare(evaluated.for_all["sgd"], evaluated.of_best, evaluated.settings).by_setting["d1"].mean < -40


def test_methods_as_good_as_each_other_are_not_above_the_best_of_them() -> None:
    """The best in tuning is the best by chance alone, and runs again."""
    settings = {f"s{place}": make_setting(f"s{place}", "width") for place in range(60)}
    methods = {f"m{place}": StudiedMethod(f"m{place}", (0.1, 0.3, 1.0), (0.0,), build) for place in range(6)}
    outcomes = run_all(settings, methods, noise)
    tuned = tune(outcomes, settings, methods)
    evaluated = evaluate(outcomes, tuned)
    for name in methods:
        excess = compare(evaluated.for_all[name], evaluated.of_best, evaluated.settings)
        assert abs(excess.mean.mean) < 1.5 * excess.mean.half_width
        lowest = {s: min((evaluated.for_each[other][s] for other in methods), key=fmean) for s in settings}
        assert compare(evaluated.for_all[name], lowest, evaluated.settings).mean.mean > 2  # what it would have been


def test_only_settings_with_all_runs_of_all_methods_are_compared() -> None:
    outcomes = run_all(SETTINGS, METHODS)
    del outcomes[Run("w2", "sgd", 0.3, 5e-4, 4, False)]
    del outcomes[Run("d1", "relative", 1.0, 5e-4, 100, True)]
    tuned = tune(outcomes, SETTINGS, METHODS)
    assert list(evaluate(outcomes, tuned).settings) == ["w1", "w3", "d2"]
    assert tuned_by_all(tuned) == ["w1", "w2", "w3", "d2"]
    assert list(above_best(tuned, ["d2", "w1"])["sgd"][Rates(0.3, 5e-4)]) == ["d2", "w1"]
    assert evaluate({}, tune({}, SETTINGS, METHODS)).settings == []
    assert evaluate({}, {}).settings == []


def test_tuning_errors_are_above_the_lowest_of_all_methods() -> None:
    tuned = tune(run_all(SETTINGS, METHODS), SETTINGS, METHODS)
    above = above_best(tuned, SETTINGS)
    step = 4 * math.log10(1 / 0.3)
    for setting in SETTINGS:
        assert above["relative"][Rates(0.3, 5e-4)][setting] == 0
        assert above["relative"][Rates(1.0, 5e-4)][setting] == pytest.approx(step)
        assert above["sgd-decay"][Rates(1.0, 5e-3)][setting] == pytest.approx(step + 2 - 0.45)
