"""One run of the study: the same again by the same seed, ended where it diverges, with the schedule of its setting."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from experiments.data import batches
from experiments.study import run
from experiments.study.methods import STUDIED, StudiedMethod
from experiments.study.run import run_once
from experiments.study.settings import SETTINGS, Setting
from experiments.study.tasks import load_task
from experiments.train import measure_error

SMALL = Setting("small", "noisy-digits", "vgg", width=2, depth=3, batch_size=200, epochs=2)
STEPS = 8  # of 898 images


class Watched:
    """Builds SGD, and sees its model and the learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.model = nn.Module()

    def build(self, model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        self.model = model
        optimizer = SGD(model.parameters(), lr, weight_decay=weight_decay)
        optimizer.register_step_pre_hook(lambda chosen, *_: self.rates.append(chosen.param_groups[0]["lr"]))
        return optimizer


def test_a_run_is_the_same_again_and_another_by_another_seed() -> None:
    once = partial(run_once, SMALL, STUDIED["relative"], 0.3, 5e-4)
    first, again, other, tuning = (once(seed, tuning=tuning) for seed, tuning in [(0, 0), (0, 0), (1, 0), (0, 1)])
    assert replace(first, seconds=0) == replace(again, seconds=0)
    assert first.train_loss != other.train_loss
    # The same is trained on, and other images tested on.
    assert first.train_loss == tuning.train_loss
    assert first.test_error != tuning.test_error


def test_training_lowers_the_error() -> None:
    longer = replace(SMALL, width=8, batch_size=50, epochs=5)
    outcome = run_once(longer, STUDIED["relative"], 0.3, 5e-4, 0, tuning=True)
    assert outcome.test_error < 70
    assert outcome.train_loss < math.log(10)
    assert outcome.seconds > 0


@pytest.mark.parametrize("classes", [3, 40])
def test_a_run_that_diverges_ends_at_once_as_bad_as_guessing(classes: int) -> None:
    watched = Watched()
    setting = Setting("diverging", "teacher", "unnormalized-mlp", width=8, depth=2, classes=classes)
    outcome = run_once(setting, StudiedMethod("", (), (), watched.build), 1e9, 0.0, 0, tuning=True)
    assert outcome.test_error == pytest.approx(100 * (1 - 1 / classes))
    assert outcome.train_loss == math.inf
    assert 0 < len(watched.rates) < 5


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1.1e4])
def test_a_loss_that_is_not_finite_or_large_is_divergence(loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "cross_entropy", lambda *_: torch.tensor(loss))
    outcome = run_once(SMALL, STUDIED["sgd"], 0.1, 0.0, 0, tuning=True)
    assert (outcome.test_error, outcome.train_loss) == (90, math.inf)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("cosine", [(1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]),
        ("constant", [1] * STEPS),
        ("step", [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
    ],
)
def test_the_rate_follows_the_schedule(schedule: Any, factors: list[float]) -> None:
    watched = Watched()
    method = StudiedMethod("", (), (), watched.build)
    run_once(replace(SMALL, schedule=schedule), method, 0.5, 0.0, 0, tuning=True)
    assert watched.rates == pytest.approx([0.5 * factor for factor in factors])


@pytest.mark.parametrize("name", ["dog", "schedulefree-sgd"])
def test_an_average_takes_the_place_of_a_schedule(name: str) -> None:
    models: list[nn.Module] = []

    def build(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        models.append(model)
        return STUDIED[name].build(model, lr, weight_decay)

    method = replace(STUDIED[name], build=build)
    outcomes = [
        run_once(replace(SMALL, schedule=kind), method, 1.0, 5e-4, 0, tuning=True) for kind in ("cosine", "constant")
    ]
    assert outcomes[0].test_error == outcomes[1].test_error
    # What was tested are the average and its own statistics, each of which is a mean over an epoch.
    model, last = models
    data = load_task(SMALL.task, tuning=True)
    assert measure_error(model, *data.test) == outcomes[0].test_error
    first = next(module for module in last.modules() if isinstance(module, nn.BatchNorm2d))
    assert first.num_batches_tracked == STEPS // SMALL.epochs
    convolution = next(module for module in last.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        outputs = [convolution(images) for images, _ in batches(data, 200, torch.Generator().manual_seed(0))]
    assert first.running_mean is not None
    torch.testing.assert_close(first.running_mean, torch.cat(outputs).mean((0, 2, 3)), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_the_name_of_its_key_and_whole_batches(name: str) -> None:
    setting = SETTINGS[name]
    assert setting.name == name
    assert len(load_task(setting.task, tuning=True, classes=setting.classes).train[1]) >= setting.batch_size


def test_no_setting_comes_twice() -> None:
    alike = {replace(setting, name="", varies="") for setting in SETTINGS.values()}
    assert len(alike) == len(SETTINGS)
