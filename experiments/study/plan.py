"""Which runs the study has, in their order: all methods of a setting together, settings of all questions in turn."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product, zip_longest

from experiments.study.choice import TUNING_SEEDS, grid, tune
from experiments.study.journal import Run
from experiments.study.methods import StudiedMethod
from experiments.study.run import Outcome
from experiments.study.settings import Setting

EVALUATION_SEEDS = (0, 1, 2, 3, 4)


def plan_tuning(settings: Mapping[str, Setting], methods: Mapping[str, StudiedMethod]) -> list[Run]:
    """Returns the runs for tuning: each method with everything that it is tried with, at each setting."""
    return [
        Run(setting, name, *rates, seed, True)
        for setting in take_turns(settings)
        for name, method in methods.items()
        for rates, seed in product(grid(method), TUNING_SEEDS)
    ]


def plan_evaluation(
    settings: Mapping[str, Setting], methods: Mapping[str, StudiedMethod], outcomes: Mapping[Run, Outcome]
) -> list[Run]:
    """Returns the runs for evaluation: each method with its rates for all settings and with those for each.

    Args:
        settings: those that the rates for all are chosen by.
        methods: those to evaluate.
        outcomes: of the runs for tuning. A setting that lacks some of a method's has no part in its choice, and gets no
            runs of it.
    """
    runs = []
    tuned = tune(outcomes, settings, methods)
    for setting, name in product(take_turns(settings), methods):
        for_all, own = tuned[name].for_all, tuned[name].for_each.get(setting)
        if for_all and own:
            chosen = dict.fromkeys((for_all, own))
            runs += [Run(setting, name, *rates, seed, False) for rates in chosen for seed in EVALUATION_SEEDS]
    return runs


def take_turns(settings: Mapping[str, Setting]) -> list[str]:
    """Returns the names of the settings, one of each question and then the next of each."""
    by_question: dict[str, list[str]] = {}
    for name, setting in settings.items():
        by_question.setdefault(setting.varies, []).append(name)
    return [name for turn in zip_longest(*by_question.values()) for name in turn if name is not None]
