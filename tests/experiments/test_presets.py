"""The presets: as they are described, and methods that learn their digits."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from experiments.compare import TUNED, VARIATIONS, Settings, Variation, compare
from experiments.data import DATASETS
from experiments.methods import MOMENTUM
from experiments.models import MODELS
from experiments.presets import PRESETS
from experiments.train import FACTOR, PATIENCE
from tests.experiments.comparisons import CHOSEN


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


def test_methods_learn_the_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIATIONS, TUNED, Variation(TUNED, width=0.5))
    settings = Settings(seeds=(0,), epochs=3, batch_size=32, backend="foreach")
    for result in compare(settings, CHOSEN, Console(quiet=True)):
        assert len(result.train_loss) == len(result.test_error) == 3
        assert result.train_loss[-1] < 0.5 * result.train_loss[0]
        assert result.test_error[-1] < 40  # guessing: 90
        assert 0 < result.step_ms < 1e3 * result.seconds
