"""The variations: each changes one thing, by its factor, and all else is as in the tuned setting."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.compare import KINDS, TUNED, VARIATIONS, RunResult, Settings, choose, compare
from experiments.data import DATASETS, Dataset
from experiments.methods import METHODS, Method, Tuned
from experiments.models import MODELS, initialise, scale_badly

pytestmark = pytest.mark.usefixtures("small_networks", "few_images")

QUIET = Console(quiet=True)
WIDTHS = {"width x 0.5": 0.5, "width x 2": 2.0}
SETTINGS = Settings("few", seeds=(0, 1), epochs=2, batch_size=8, backend="foreach")


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(32, 3, 2, 2, generator=generator), torch.arange(32) % 4
    monkeypatch.setitem(DATASETS, "few", lambda root: Dataset((images, labels), (images, labels), classes=4))


@dataclass
class Run:
    """What a run began with, and the batches that it trained on."""

    weights: list[Tensor]
    rates: tuple[float, float]
    batches: list[Tensor] = field(default_factory=list)


def watched_runs(settings: Settings) -> tuple[dict[tuple[int, str], Run], list[RunResult]]:
    runs: list[Run] = []

    def build(model: nn.Module, lr: float, weight_decay: float, backend: str | None) -> Optimizer:
        run = Run([weight.detach().clone() for weight in model.parameters()], (lr, weight_decay))
        runs.append(run)

        def record(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if model.training:
                run.batches.append(inputs[0].clone())

        model.register_forward_pre_hook(record)
        return METHODS["sgd"].build(model, lr, weight_decay, backend)

    results = compare(settings, {"watched": Method("watched", build).tuned(0.5, 0.01)}, QUIET)
    assert len(runs) == len(results)
    return {(result.seed, result.variation): run for result, run in zip(results, runs, strict=True)}, results


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


def without_times(result: RunResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if key not in ("step_ms", "seconds")}


# What a comparison has them do


def test_every_variation_has_the_seeds_and_batches_of_the_tuned_setting() -> None:
    runs, _ = watched_runs(replace(SETTINGS, variations=tuple(VARIATIONS)))
    assert list(runs) == list(product(SETTINGS.seeds, VARIATIONS))
    for (seed, _), run in runs.items():
        assert len(run.batches) == 8
        assert same(run.batches, runs[seed, TUNED].batches)
    assert not same(runs[0, TUNED].batches, runs[1, TUNED].batches)


def test_the_tuned_setting_is_what_a_comparison_without_variations_has() -> None:
    alone, results = watched_runs(SETTINGS)
    among, all_results = watched_runs(replace(SETTINGS, variations=tuple(VARIATIONS)))
    assert list(alone) == [(seed, TUNED) for seed in SETTINGS.seeds]
    for key, run in alone.items():
        assert same(run.weights, among[key].weights)
        assert run.rates == among[key].rates == (0.5, 0.01)
    kept = [without_times(result) for result in all_results if result.variation == TUNED]
    assert kept == [without_times(result) for result in results]


def test_other_learning_rates_reach_the_optimizer_and_nothing_else_does() -> None:
    names = choose(("lr",))
    runs, results = watched_runs(replace(SETTINGS, variations=names))
    for (seed, _), run in runs.items():
        assert same(run.weights, runs[seed, TUNED].weights)
        assert run.rates[1] == 0.01
    factors = [runs[0, name].rates[0] / 0.5 for name in names]
    assert factors == pytest.approx([1, 0.1, 10**-0.5, 10**0.5, 10])
    for name, factor in zip(names[1:], factors[1:], strict=True):
        assert name == f"lr x {factor:.2g}"
    assert len({tuple(result.train_loss) for result in results}) == len(results)


def test_another_initialisation_scales_the_weights_of_the_tuned_one() -> None:
    runs, _ = watched_runs(replace(SETTINGS, variations=choose(("init",))))
    for seed in SETTINGS.seeds:
        hidden, head = runs[seed, TUNED].weights
        expected = MODELS["vgg7"](3, 4)
        initialise(expected, seed)
        scale_badly(expected, seed, 1)
        assert same(runs[seed, "init"].weights, [weight.detach() for weight in expected.parameters()])
        assert not torch.equal(runs[seed, "init"].weights[0], hidden)
        assert torch.equal(runs[seed, "init"].weights[1], head)
        assert runs[seed, "init"].rates == (0.5, 0.01)


def test_other_widths_are_other_networks_with_the_same_rates() -> None:
    runs, _ = watched_runs(replace(SETTINGS, variations=choose(("width",))))
    for seed, (name, factor) in product(SETTINGS.seeds, WIDTHS.items()):
        run = runs[seed, name]
        assert [len(weight) for weight in run.weights] == [8 * factor, 4]
        assert run.rates == (0.5, 0.01)
        assert run.weights[0].std().item() == pytest.approx(math.sqrt(2 / 12), rel=0.35)  # He et al. (2015)


def test_every_seed_variation_and_method_is_one_run() -> None:
    methods: dict[str, Tuned] = {name: METHODS[name].tuned(0.01, 0.0) for name in ("sgd", "recommended")}
    settings = replace(SETTINGS, epochs=1, variations=choose(("width", "init")))
    results = compare(settings, methods, QUIET)
    wanted = list(product((0, 1), ("tuned", "init", "width x 0.5", "width x 2"), methods))
    assert [(result.seed, result.variation, result.method) for result in results] == wanted


def test_the_kinds_that_are_chosen_come_after_the_tuned_setting() -> None:
    assert KINDS == ("lr", "init", "width")
    assert choose(()) == (TUNED,)
    assert choose(("width",)) == (TUNED, "width x 0.5", "width x 2")
    assert choose(("init", "lr")) == choose(("lr", "init"))
    assert choose(KINDS) == tuple(VARIATIONS)
    assert next(iter(VARIATIONS)) == TUNED
