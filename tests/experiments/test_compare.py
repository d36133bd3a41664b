"""Comparisons: presets as they are described, methods that learn, and runs that can be repeated to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from rich.console import Console

from experiments.compare import TUNED, VARIATIONS, Settings, Variation, compare
from experiments.data import DATASETS
from experiments.methods import METHODS, MOMENTUM, why_unavailable
from experiments.models import MODELS, initialise
from experiments.presets import PRESETS
from experiments.train import FACTOR, PATIENCE, train
from sasgd_fused import ScaleAmendedSGD

QUIET = Console(quiet=True)
RATES = {
    "sgd": (0.1, 5e-3),
    "paper": (0.01, 5e-3),
    "recommended": (0.01, 5e-3),
    "lars": (0.01, 5e-3),
    "adamw": (0.01, 5e-3),
    "muon": (0.01, 5e-3),
}
CHOSEN = {name: METHODS[name].tuned(*rates) for name, rates in RATES.items() if why_unavailable(name) is None}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_whole(preset: str) -> None:
    settings = PRESETS[preset].settings
    assert f"{settings.dataset}-tuning" in DATASETS
    assert len(PRESETS[preset].methods) > 1
    colour, side = (3, 32) if settings.dataset.startswith("cifar") else (1, 8)
    model = MODELS[settings.model](colour, 10)
    assert model(torch.zeros(2, colour, side, side)).shape == (2, 10)


def test_the_presets_of_the_paper_are_its_section_4() -> None:
    for classes, lr in ((10, 0.005), (100, 0.1)):
        preset = PRESETS[f"paper-cifar{classes}"]
        settings = preset.settings
        assert (settings.model, settings.epochs, settings.schedule) == ("vgg13", 300, "plateau")
        assert settings.dataset == f"cifar{classes}"
        rates = {name: (method.lr, method.weight_decay) for name, method in preset.methods.items()}
        assert rates == {"sgd": (0.1, 5e-3), "paper": (lr, 5e-3)}
    assert (MOMENTUM, PATIENCE, FACTOR) == (0.9, 10, 0.5)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_run_is_reproducible_to_the_bit(name: str) -> None:
    data = DATASETS["digits"]()
    initial = MODELS["vgg7"](1, data.classes, 0.25)
    initialise(initial, 0)
    models = [copy.deepcopy(initial) for _ in range(2)]
    first, second = (
        train(model, CHOSEN[name].build(model, "foreach"), data, seed=3, epochs=1, batch_size=64) for model in models
    )
    assert (first.train_loss, first.test_error) == (second.train_loss, second.test_error)
    states = [model.state_dict().values() for model in models]
    assert all(map(torch.equal, *states))
    assert not any(map(torch.equal, models[0].parameters(), initial.parameters()))


def test_methods_learn_the_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIATIONS, TUNED, Variation(TUNED, width=0.5))
    settings = Settings(seeds=(0,), epochs=3, batch_size=32, backend="foreach")
    for result in compare(settings, CHOSEN, QUIET):
        assert len(result.train_loss) == len(result.test_error) == 3
        assert result.train_loss[-1] < 0.5 * result.train_loss[0]
        assert result.test_error[-1] < 40  # guessing: 90
        assert 0 < result.step_ms < 1e3 * result.seconds


def test_layer_scales_are_those_of_the_report_after_each_epoch() -> None:
    data = DATASETS["digits-tuning"]()
    for name, method in CHOSEN.items():
        model = MODELS["vgg7"](1, data.classes, 0.25)
        optimizer = method.build(model, "foreach")
        reports: list[list[float]] = []

        def on_epoch(optimizer: torch.optim.Optimizer = optimizer, reports: list[list[float]] = reports) -> None:
            if isinstance(optimizer, ScaleAmendedSGD):
                reports.append([row.layer_scale for row in optimizer.layer_report()])

        history = train(model, optimizer, data, seed=0, epochs=2, batch_size=64, on_epoch=on_epoch)
        assert history.layer_scale == reports
        assert [len(scales) for scales in reports] == ([7, 7] if name in ("paper", "recommended") else []), name
