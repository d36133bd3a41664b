"""Which runs a study has, and which rates its tuning chooses."""

from __future__ import annotations

from experiments.study.choice import Rates, tune
from experiments.study.journal import Run
from experiments.study.methods import ABLATIONS, STUDIED
from experiments.study.plan import plan_evaluation, plan_tuning, take_turns
from experiments.study.run import Outcome
from experiments.study.settings import SETTINGS as REAL_SETTINGS
from tests.experiments.study.made_up import METHODS, SETTINGS, run_all, valley

SGD = {"sgd": METHODS["sgd"]}


def test_tuning_tries_everything_once_with_each_seed() -> None:
    runs = plan_tuning(SETTINGS, METHODS)
    assert len(set(runs)) == len(runs) == len(SETTINGS) * (3 + 3 * 2 + 3) * 2
    assert {run.seed for run in runs} == {100, 101}
    assert all(run.tuning for run in runs)
    assert {(run.lr, run.weight_decay) for run in runs if run.method == "sgd-decay"} == {
        (lr, decay) for lr in (0.1, 0.3, 1.0) for decay in (5e-4, 5e-3)
    }


def test_settings_of_all_questions_take_turns_and_are_done_whole() -> None:
    order = ["w1", "d1", "w2", "d2", "w3"]
    assert take_turns(SETTINGS) == order
    runs = plan_tuning(SETTINGS, METHODS)
    assert [run.setting for run in runs] == [name for name in order for _ in range(len(runs) // len(order))]
    outcomes = {run: valley(run) for run in runs}
    evaluation = plan_evaluation(SETTINGS, METHODS, outcomes)
    assert list(dict.fromkeys(run.setting for run in evaluation)) == order


def outcomes_of(errors: dict[str, tuple[float, float, float]]) -> dict[Run, Outcome]:
    """Returns the runs of SGD for tuning, with the errors at three rates by setting; seeds are a point apart."""
    return {
        Run(setting, "sgd", lr, 5e-4, seed, True): Outcome(error + seed - 100.5, 1.0, 1.0)
        for setting, of_setting in errors.items()
        for lr, error in zip((0.1, 0.3, 1.0), of_setting, strict=True)
        for seed in (100, 101)
    }


def test_one_rate_is_best_in_the_mean_and_each_setting_has_its_own() -> None:
    outcomes = outcomes_of({"w1": (10.0, 12.0, 50.0), "d1": (33.0, 30.0, 29.5), "w2": (20.0, 19.0, 19.0)})
    tuned = tune(outcomes, SETTINGS, SGD)["sgd"]
    assert tuned.errors["d1"] == {Rates(0.1, 5e-4): 33.0, Rates(0.3, 5e-4): 30.0, Rates(1.0, 5e-4): 29.5}
    assert tuned.for_all == (0.3, 5e-4)
    assert {name: rates.lr for name, rates in tuned.for_each.items()} == {"w1": 0.1, "w2": 0.3, "d1": 1.0}
    runs = plan_evaluation(SETTINGS, SGD, outcomes)
    assert [(run.setting, run.lr) for run in runs if run.seed == 0] == [
        *(("w1", 0.3), ("w1", 0.1)),
        *(("d1", 0.3), ("d1", 1.0)),
        ("w2", 0.3),
    ]
    assert {run.seed for run in runs} == {0, 1, 2, 3, 4}
    assert not any(run.tuning for run in runs)


def test_a_setting_whose_tuning_is_not_done_is_not_chosen_by() -> None:
    outcomes = outcomes_of({"w1": (10.0, 12.0, 50.0), "d1": (90.0, 30.0, 29.5)})
    del outcomes[Run("d1", "sgd", 1.0, 5e-4, 101, True)]
    assert tune(outcomes, SETTINGS, SGD)["sgd"].for_all == (0.1, 5e-4)
    assert {run.setting for run in plan_evaluation(SETTINGS, METHODS, outcomes)} == {"w1"}
    assert plan_evaluation(SETTINGS, METHODS, {}) == []


def test_decay_is_chosen_with_the_rate() -> None:
    tuned = tune(run_all(SETTINGS, METHODS), SETTINGS, METHODS)
    assert {name: of_method.for_all for name, of_method in tuned.items()} == {
        "sgd": (0.3, 5e-4),
        "sgd-decay": (0.3, 5e-3),
        "relative": (0.3, 5e-4),
    }


def test_names_tell_runs_of_the_real_study_apart() -> None:
    assert not STUDIED.keys() & ABLATIONS.keys()
    assert all(name == setting.name for name, setting in REAL_SETTINGS.items())
    assert not {setting.varies for setting in REAL_SETTINGS.values()} & REAL_SETTINGS.keys()
