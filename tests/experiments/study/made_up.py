"""Small studies whose errors are made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from torch import nn
from torch.optim import SGD, Optimizer

from experiments.study.journal import Run
from experiments.study.methods import StudiedMethod
from experiments.study.plan import plan_evaluation, plan_tuning
from experiments.study.run import Outcome
from experiments.study.settings import Setting


def build(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return SGD(model.parameters(), lr, weight_decay=weight_decay)


def make_setting(name: str, varies: str) -> Setting:
    return Setting(name, "teacher", "mlp", 8, 2, 3, 32, 1, "cosine", "plain", varies)


SETTINGS = {
    name: make_setting(name, varies)
    for name, varies in (("w1", "width"), ("w2", "width"), ("w3", "width"), ("d1", "depth"), ("d2", "depth"))
}
METHODS = {
    "sgd": StudiedMethod("SGD", (0.1, 0.3, 1.0), (5e-4,), build),
    "sgd-decay": StudiedMethod("SGD, decay tuned", (0.1, 0.3, 1.0), (5e-4, 5e-3), build),
    "relative": StudiedMethod("relative", (0.1, 0.3, 1.0), (5e-4,), build),
}
ABLATIONS = {"exact": StudiedMethod("exact norms", (0.1, 0.3, 1.0), (5e-4,), build)}


def valley(run: Run) -> Outcome:
    """The best rate is 0.3; the higher the decay the better, and the wider; relative is 2 points better than others."""
    error = 20 + 4 * abs(math.log10(run.lr / 0.3)) - 100 * run.weight_decay + list(SETTINGS).index(run.setting)
    return Outcome(error - 2 * (run.method == "relative") + run.seed % 100 / 10, 1.0, 0.5)


def noise(run: Run) -> Outcome:
    """All methods and rates are as good as each other: an error of 50, and 5 points of chance."""
    return Outcome(50 + Random(repr(run)).gauss(0, 5), 1.0, 0.5)


def run_all(
    settings: Mapping[str, Setting],
    methods: Mapping[str, StudiedMethod],
    measure: Callable[[Run], Outcome] = valley,
) -> dict[Run, Outcome]:
    """Returns the outcomes of all runs of a study."""
    outcomes = {run: measure(run) for run in plan_tuning(settings, methods)}
    return outcomes | {run: measure(run) for run in plan_evaluation(settings, methods, outcomes)}


def use_threads(patch: pytest.MonkeyPatch) -> None:
    """Has a study take threads for workers, which need not import torch first."""

    def start(count: int, *_: Any, **__: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(count)

    patch.setattr("experiments.study.study.ProcessPoolExecutor", start)
