"""Comparisons that take milliseconds, by a small network in the place of the presets'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from torch import nn

from experiments.cli import run
from experiments.compare import KINDS
from experiments.models import MODELS
from tests.helpers import DEVICE


@pytest.fixture(autouse=True, scope="module")
def _cpu() -> None:
    if DEVICE.type != "cpu":
        pytest.skip("the CPU's alone: the experiments run there")


@pytest.fixture
def quiet_optuna() -> Iterator[None]:
    """Optuna without a line for each trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def small(channels: int, classes: int, width: float = 1) -> nn.Sequential:
    """Makes a network of one hidden layer, whose width is 8 at first."""
    hidden = round(8 * width)
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 2, bias=False),
        nn.BatchNorm2d(hidden, affine=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(hidden, classes, bias=False),
    )


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every preset's network is a small one."""
    for name in MODELS:
        monkeypatch.setitem(MODELS, name, small)


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a comparison of two methods with every variation leaves."""
    out = tmp_path_factory.mktemp("compared") / "new" / "folder"
    options = ["--methods", "sgd", "recommended", "--vary", *KINDS, "--seeds", "7", "--epochs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "vgg7", small)
        assert run(["compare", *options, "--out", str(out)]) == 0
    return out
