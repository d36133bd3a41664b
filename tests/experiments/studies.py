"""Studies whose trials are made up, and searches whose workers are threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna import Study
from optuna.trial import create_trial

from experiments.search import DOMAIN


def use_threads(patch: pytest.MonkeyPatch) -> None:
    """Has a search take threads for workers, which need not import torch first."""
    patch.setattr("experiments.search.ProcessPoolExecutor", lambda count, *_, **__: ThreadPoolExecutor(count))


def study_of(*trials: tuple[float, list[float | None]]) -> Study:
    study = optuna.create_study()
    for number, (error, losses) in enumerate(trials):
        params = {"lr": 0.1 + number, "weight_decay": 0.01}
        attributes = {"test_error": [error], "train_loss": losses}
        study.add_trial(create_trial(params=params, distributions=DOMAIN, value=error, user_attrs=attributes))
    return study
