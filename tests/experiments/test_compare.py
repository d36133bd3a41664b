"""The experiments: data and networks as they are described, fair comparisons, reproducible runs."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("matplotlib")
pytest.importorskip("optuna")
pytest.importorskip("pytorch_optimizer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from rich.console import Console

from bench.cases import vgg13_cifar
from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.experiments.augment import random_crops
from sasgd_fused.experiments.compare import Settings, compare
from sasgd_fused.experiments.data import DATASETS, Dataset, batches
from sasgd_fused.experiments.methods import METHODS, MOMENTUM, Method, Tuned, why_unavailable
from sasgd_fused.experiments.models import MODELS, PreActivation, initialise
from sasgd_fused.experiments.presets import PRESETS
from sasgd_fused.experiments.schedules import FACTOR, PATIENCE
from sasgd_fused.experiments.train import train
from tests.helpers import cpu_only

pytestmark = [cpu_only("the experiments run there"), pytest.mark.usefixtures("one_thread")]

QUIET = Console(quiet=True)
TINY = Settings(seeds=(0, 1), epochs=1, backend="foreach")
RATES = {
    "sgd": (0.1, 5e-3),
    "paper": (0.01, 5e-3),
    "recommended": (0.01, 5e-3),
    "lars": (0.01, 5e-3),
    "adamw": (0.01, 5e-3),
    "muon": (0.01, 5e-3),
}
TUNED = {name: METHODS[name].tuned(*rates) for name, rates in RATES.items() if why_unavailable(name) is None}
SHOWN = PRESETS["digits"].methods


# Data and models


def test_digits_are_split_without_overlap_and_standardised() -> None:
    data = DATASETS["digits"]()
    train_images = data.train_images[:, :, 1:-1, 1:-1]
    assert train_images.shape == (898, 1, 8, 8)
    assert data.test_images.shape == (899, 1, 8, 8)
    torch.testing.assert_close(train_images.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(train_images.std(), torch.tensor(1.0), atol=1e-5, rtol=0)
    # The margin is background, the darkest there is.
    assert set(data.train_images[:, :, 0].flatten().tolist()) == {train_images.min().item()}


def test_tuning_does_not_see_the_test_images() -> None:
    data, tuning = DATASETS["digits"](), DATASETS["digits-tuning"]()
    assert len(tuning.train_labels) + len(tuning.test_labels) == len(data.train_labels)
    assert torch.equal(torch.cat([tuning.train_labels, tuning.test_labels]), data.train_labels)


def test_random_crops_are_windows_of_their_image() -> None:
    images = torch.arange(40 * 25, dtype=torch.float32).reshape(40, 1, 5, 5)
    crops = random_crops(images, 3, 3, torch.Generator().manual_seed(0))
    offsets = crops[:, 0, 0, 0] - images[:, 0, 0, 0]
    assert set(offsets.tolist()) == {0, 1, 2, 5, 6, 7, 10, 11, 12}
    for image, crop, offset in zip(images, crops, offsets.int().tolist(), strict=True):
        top, left = divmod(offset, 5)
        assert torch.equal(crop, image[:, top : top + 3, left : left + 3])


def test_an_epoch_shows_each_image_once() -> None:
    count = 10
    images = torch.arange(count, dtype=torch.float32).reshape(count, 1, 1, 1)
    data = Dataset(images, torch.arange(count), images, torch.arange(count), classes=count)
    seen = [labels for _, labels in batches(data, 3, torch.Generator().manual_seed(0))]
    assert [len(labels) for labels in seen] == [3, 3, 3]
    assert len(set(torch.cat(seen).tolist())) == 9
    for batch, labels in batches(data, 5, torch.Generator().manual_seed(0)):
        assert torch.equal(batch.flatten(), labels.float())


@pytest.mark.parametrize(("name", "side"), [("vgg7", 8), ("vgg13", 32)])
def test_vggs_are_built_as_those_of_the_paper(name: str, side: int) -> None:
    model = MODELS[name](3, 10)
    weighted = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [type(module) for module in weighted].count(nn.Linear) == 1
    kinds = [type(module) for module in model if not isinstance(module, nn.MaxPool2d)]
    convolutions = len(weighted) - 1
    assert kinds[: 3 * convolutions] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * convolutions
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 10)


def test_vgg13_has_the_shapes_that_the_benchmark_steps() -> None:
    assert [tuple(weight.shape) for weight in MODELS["vgg13"](3, 10).parameters()] == vgg13_cifar()


@pytest.mark.parametrize("name", MODELS)
def test_models_have_no_biases_and_normalization_no_weights(name: str) -> None:
    model = MODELS[name](1, 10)
    weighted = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert all(module.bias is None for module in weighted)
    assert len(list(model.parameters())) == len(weighted)


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


def test_gradients_of_the_deep_plain_network_are_out_of_balance() -> None:
    model = MODELS["deep-plain"](1, 10)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 1, 8, 8, generator=generator), torch.arange(64) % 10
    nn.functional.cross_entropy(model(images), labels).backward()
    hidden = [weight.grad.norm() / weight.norm() for weight in model.parameters()][:-1]
    assert hidden[0] > 8 * hidden[-1]


def test_skips_carry_their_images() -> None:
    block = PreActivation(4, 4, 1)
    nn.init.zeros_(block.second.weight)
    images = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(images), images)
    assert PreActivation(4, 6, 2)(images).shape == (2, 6, 4, 4)


def test_initialisation_follows_the_seed_and_he() -> None:
    models = [MODELS["vgg7"](1, 10) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        initialise(model, seed)
    first, second, other = (list(model.parameters()) for model in models)
    assert all(map(torch.equal, first, second))
    assert not any(map(torch.equal, first, other))
    norms = [weight.square().sum().item() / len(weight) for weight in first]
    assert norms[1:] == pytest.approx([2, 2, 2, 2, 2, 1], rel=0.1)


# Runs


class Recorder:
    """Makes a model that keeps copies of its initial weights and of the batches it is trained on."""

    def __init__(self) -> None:
        self.batches: list[list[Tensor]] = []
        self.weights: list[list[Tensor]] = []

    def build(self, channels: int, classes: int, width: float = 1) -> nn.Sequential:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False), nn.Linear(4, classes, bias=False))
        model.register_forward_pre_hook(self.record)
        return model

    def record(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if model.training:
            self.batches[-1].append(inputs[0].clone())

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        return self


def test_methods_share_initialisation_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setitem(MODELS, "vgg7", recorder.build)

    def watched(method: Method) -> Tuned:
        def build(model: nn.Module, *options: Any) -> torch.optim.Optimizer:
            recorder.weights.append([weight.detach().clone() for weight in model.parameters()])
            recorder.batches.append([])
            return method.build(model, *options)

        return Method(method.label, build).tuned(0.01, 5e-3)

    compare(TINY, {name: watched(method) for name, method in METHODS.items()}, QUIET)
    runs = len(METHODS)
    assert len(recorder.weights) == len(recorder.batches) == 2 * runs
    for kept in (recorder.weights, recorder.batches):
        for seed in range(2):
            first, *others = kept[seed * runs : (seed + 1) * runs]
            for other in others:
                assert len(first) == len(other) > 0
                assert all(map(torch.equal, first, other))
        assert not torch.equal(kept[0][0], kept[runs][0])  # the seeds differ


@pytest.mark.parametrize("name", TUNED)
def test_a_run_is_reproducible_to_the_bit(name: str) -> None:
    data = DATASETS["digits"]()
    initial = MODELS["vgg7"](1, data.classes)
    initialise(initial, 0)
    models = [copy.deepcopy(initial) for _ in range(2)]
    first, second = (
        train(name, TUNED[name], model, data, seed=3, epochs=1, batch_size=64, backend="foreach", on_epoch=lambda: None)
        for model in models
    )
    assert (first.train_loss, first.test_error) == (second.train_loss, second.test_error)
    states = [model.state_dict().values() for model in models]
    assert all(map(torch.equal, *states))
    assert not any(map(torch.equal, models[0].parameters(), initial.parameters()))


def test_methods_learn_the_digits() -> None:
    settings = dataclasses.replace(TINY, seeds=(0,), epochs=3)
    for result in compare(settings, TUNED, QUIET):
        assert len(result.train_loss) == len(result.test_error) == 3
        assert result.train_loss[-1] < 0.5 * result.train_loss[0]
        assert result.test_error[-1] < 40  # guessing: 90
        assert 0 < result.step_ms < 1e3 * result.seconds


def test_layer_scales_are_those_of_the_report_after_each_epoch() -> None:
    data = DATASETS["digits-tuning"]()
    for name, method in TUNED.items():
        optimizers: list[torch.optim.Optimizer] = []
        reports: list[list[float]] = []

        def build(*arguments: Any, method: Tuned = method, kept: list[Any] = optimizers) -> torch.optim.Optimizer:
            optimizer = method.method.build(*arguments)
            kept.append(optimizer)
            return optimizer

        def on_epoch(kept: list[Any] = optimizers, reports: list[list[float]] = reports) -> None:
            if isinstance(kept[0], ScaleAmendedSGD):
                reports.append([row.layer_scale for row in kept[0].layer_report()])

        model = MODELS["vgg7"](1, data.classes, 0.25)
        watched = Method("watched", build).tuned(method.lr, method.weight_decay)
        options: dict[str, Any] = {"batch_size": 64, "backend": "foreach", "on_epoch": on_epoch}
        result = train(name, watched, model, data, seed=0, epochs=2, **options)
        assert result.layer_scale == reports
        assert [len(scales) for scales in reports] == ([7, 7] if name in ("paper", "recommended") else []), name
