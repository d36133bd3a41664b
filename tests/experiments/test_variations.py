"""The variations: each changes one thing, by its factor, and all else is as in the tuned setting."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

pytest.importorskip("pytorch_optimizer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from rich.console import Console

from sasgd_fused.experiments.compare import Settings, compare
from sasgd_fused.experiments.data import DATASETS, Dataset
from sasgd_fused.experiments.methods import METHODS, Method, Tuned
from sasgd_fused.experiments.models import MODELS, initialise, scale_badly
from sasgd_fused.experiments.train import RunResult
from sasgd_fused.experiments.variations import KINDS, TUNED, VARIATIONS, choose
from tests.helpers import cpu_only

pytestmark = [cpu_only("the experiments run there"), pytest.mark.usefixtures("one_thread")]

QUIET = Console(quiet=True)
WIDTHS = {"width x 0.5": 0.5, "width x 2": 2.0}
SETTINGS = Settings("few", "small", seeds=(0, 1), epochs=2, batch_size=8, backend="foreach")


@pytest.fixture(autouse=True)
def few_images_and_a_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(32, 3, 2, 2, generator=generator), torch.arange(32) % 4
    data = Dataset(images, labels, images, labels, classes=4)

    def small(channels: int, classes: int, width: float = 1) -> nn.Sequential:
        hidden = round(8 * width)
        return nn.Sequential(
            nn.Conv2d(channels, hidden, 2, bias=False),
            nn.BatchNorm2d(hidden, affine=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(hidden, classes, bias=False),
        )

    monkeypatch.setitem(DATASETS, "few", lambda root: data)
    monkeypatch.setitem(MODELS, "small", small)


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
        expected = network("small")
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


# Networks of other widths


def network(name: str, width: float = 1, channels: int = 3, classes: int = 4) -> nn.Sequential:
    return MODELS[name](channels, classes, width)


@pytest.mark.parametrize("width", WIDTHS.values())
@pytest.mark.parametrize("name", ["vgg7", "vgg13", "deep-plain", "resnet"])
def test_width_scales_hidden_layers_alone(name: str, width: float) -> None:
    with torch.device("meta"):
        plain, other = network(name), network(name, width)
        side = 32 if name == "vgg13" else 8
        assert other(torch.empty(2, 3, side, side)).shape == (2, 4)
    before = [tuple(weight.shape) for weight in plain.parameters()]
    after = [tuple(weight.shape) for weight in other.parameters()]
    # Inputs of the first layer are channels or pixels of the images, rows of the last one are classes.
    inputs = [1, *(width for _ in before[1:])]
    rows = [*(width for _ in before[1:]), 1]
    assert after == [
        (shape[0] * row_factor, shape[1] * input_factor, *shape[2:])
        for shape, row_factor, input_factor in zip(before, rows, inputs, strict=True)
    ]
    assert after[0][1] == (192 if name == "deep-plain" else 3)
    assert after[-1][0] == 4


# Badly scaled networks


def factors(seed: int, decades: float = 1.0) -> list[float]:
    """What each layer of a network was multiplied by."""
    plain, scaled = network("deep-plain", width=0.25), network("deep-plain", width=0.25)
    for model in (plain, scaled):
        initialise(model, 0)
    scale_badly(scaled, seed, decades)
    found = []
    for before, after in zip(plain.parameters(), scaled.parameters(), strict=True):
        ratios = after / before
        assert ratios.min().item() == pytest.approx(ratios.max().item(), rel=1e-6)
        found.append(ratios.mean().item())
    return found


def test_each_hidden_layer_has_a_factor_of_its_own_and_the_head_has_none() -> None:
    *hidden, head = factors(0)
    assert head == 1
    assert len({round(math.log(factor), 3) for factor in hidden}) == len(hidden) == 17
    assert factors(0) == [*hidden, head]
    assert not set(factors(1)) & set(hidden)


def test_factors_are_spread_evenly_over_two_decades() -> None:
    exponents = sorted(math.log10(factor) for seed in range(20) for factor in factors(seed)[:-1])
    uniform = torch.linspace(-1, 1, len(exponents))
    assert max(map(abs, exponents)) <= 1
    assert (torch.tensor(exponents) - uniform).abs().max() < 2 * 1.63 / math.sqrt(len(exponents))  # Kolmogorov's 1 %
    wider = [math.log10(factor) for factor in factors(0, decades=2)[:-1]]
    assert wider == pytest.approx([2 * math.log10(factor) for factor in factors(0)[:-1]], abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_factors_are_not_made_of_the_draws_of_the_initialisation(seed: int) -> None:
    draws = torch.rand(17, generator=torch.Generator().manual_seed(seed))
    assert factors(seed)[:-1] != pytest.approx([10 ** (2 * draw - 1) for draw in draws.tolist()], rel=1e-3)
