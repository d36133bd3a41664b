"""One run: the same to the bit each time, with the schedule's learning rates and the layers' scales."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from experiments.data import DATASETS, Dataset
from experiments.models import MODELS, initialise
from experiments.train import measure_error, train
from sasgd_fused import ScaleAmendedSGD
from tests.experiments.comparisons import CHOSEN


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


def test_cosine_falls_to_zero_with_every_step() -> None:
    images, labels = torch.eye(4), torch.arange(4)
    optimizer = torch.optim.SGD((model := nn.Linear(4, 4, bias=False)).parameters(), lr=0.1)
    rates: list[float] = []
    optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    data = Dataset((images, labels), (images, labels), classes=4)
    train(model, optimizer, data, seed=0, epochs=3, batch_size=2)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])


def test_plateau_halves_after_ten_epochs_without_a_better_validation_error(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.eye(4), torch.arange(4)
    data = Dataset((images, labels), (images, labels), classes=4, validation=(images[:3], labels[:3]))
    errors = iter([50.0, 40.0] + [45.0] * 22 + [30.0] * 5)

    def measure(model: nn.Module, images: Tensor, labels: Tensor) -> float:
        return next(errors) if len(images) == 3 else measure_error(model, images, labels)

    monkeypatch.setattr("experiments.train.measure_error", measure)
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rates: list[float] = []

    def on_epoch() -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    train(model, optimizer, data, seed=0, epochs=29, batch_size=4, schedule="plateau", on_epoch=on_epoch)
    assert rates == [0.1] * 12 + [0.05] * 11 + [0.025] * 6


def test_plateau_watches_images_that_are_not_tested_on() -> None:
    images, labels = torch.eye(4), torch.arange(4)
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    data = Dataset((images, labels), (images, labels), classes=4)
    with pytest.raises(ValueError, match="schedule: got plateau for a data set without validation images"):
        train(model, optimizer, data, seed=0, epochs=1, batch_size=4, schedule="plateau")

    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda model, inputs: seen.append((model.training, len(inputs[0]))))
    data = Dataset((images, labels), (images[:2], labels[:2]), classes=4, validation=(images[:3], labels[:3]))
    train(model, optimizer, data, seed=0, epochs=2, batch_size=4, schedule="plateau")
    assert seen == [(True, 4), (False, 3), (False, 2)] * 2
