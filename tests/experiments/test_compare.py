"""Fair comparisons: methods share all but their rule, and a variation changes one thing alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from experiments.methods import METHODS, Method, Tuned, why_unavailable
from experiments.models import MODELS, initialise, scale_badly

pytestmark = pytest.mark.usefixtures("small_networks", "few_images")

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


def watched_runs(
    settings: Settings, methods: Sequence[str] = ("sgd",)
) -> tuple[dict[tuple[int, str, str], Run], list[RunResult]]:
    """Compares methods; returns what each run began with and trained on, by seed, variation and method."""
    runs: list[Run] = []

    def watch(method: Method) -> Tuned:
        def build(model: nn.Module, lr: float, weight_decay: float, backend: str | None) -> Optimizer:
            run = Run([weight.detach().clone() for weight in model.parameters()], (lr, weight_decay))
            runs.append(run)

            def record(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                if model.training:
                    run.batches.append(inputs[0].clone())

            model.register_forward_pre_hook(record)
            return method.build(model, lr, weight_decay, backend)

        return Method(method.label, build).tuned(0.5, 0.01)

    results = compare(settings, {name: watch(METHODS[name]) for name in methods}, Console(quiet=True))
    keys = [(result.seed, result.variation, result.method) for result in results]
    return dict(zip(keys, runs, strict=True)), results


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


def without_times(result: RunResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if key not in ("step_ms", "seconds")}


def test_methods_share_initialisation_and_batches() -> None:
    names = [name for name in METHODS if why_unavailable(name) is None]
    runs, _ = watched_runs(SETTINGS, names)
    assert list(runs) == list(product(SETTINGS.seeds, (TUNED,), names))
    for (seed, _, _), run in runs.items():
        first = runs[seed, TUNED, names[0]]
        assert same(run.weights, first.weights) and same(run.batches, first.batches)
    assert not same(runs[0, TUNED, "sgd"].weights, runs[1, TUNED, "sgd"].weights)


def test_every_variation_has_the_seeds_and_batches_of_the_tuned_setting() -> None:
    runs, _ = watched_runs(replace(SETTINGS, variations=tuple(VARIATIONS)))
    assert list(runs) == list(product(SETTINGS.seeds, VARIATIONS, ("sgd",)))
    for (seed, _, _), run in runs.items():
        assert len(run.batches) == 8
        assert same(run.batches, runs[seed, TUNED, "sgd"].batches)
    assert not same(runs[0, TUNED, "sgd"].batches, runs[1, TUNED, "sgd"].batches)


def test_the_tuned_setting_is_what_a_comparison_without_variations_has() -> None:
    alone, results = watched_runs(SETTINGS)
    among, all_results = watched_runs(replace(SETTINGS, variations=tuple(VARIATIONS)))
    assert list(alone) == [(seed, TUNED, "sgd") for seed in SETTINGS.seeds]
    for key, run in alone.items():
        assert same(run.weights, among[key].weights)
        assert run.rates == among[key].rates == (0.5, 0.01)
    kept = [without_times(result) for result in all_results if result.variation == TUNED]
    assert kept == [without_times(result) for result in results]


def test_other_learning_rates_reach_the_optimizer_and_nothing_else_does() -> None:
    names = choose(("lr",))
    runs, results = watched_runs(replace(SETTINGS, variations=names))
    for (seed, _, _), run in runs.items():
        assert same(run.weights, runs[seed, TUNED, "sgd"].weights)
        assert run.rates[1] == 0.01
    factors = [runs[0, name, "sgd"].rates[0] / 0.5 for name in names]
    assert factors == pytest.approx([1, 0.1, 10**-0.5, 10**0.5, 10])
    for name, factor in zip(names[1:], factors[1:], strict=True):
        assert name == f"lr x {factor:.2g}"
    assert len({tuple(result.train_loss) for result in results}) == len(results)


def test_another_initialisation_scales_the_weights_of_the_tuned_one() -> None:
    runs, _ = watched_runs(replace(SETTINGS, variations=choose(("init",))))
    for seed in SETTINGS.seeds:
        hidden, head = runs[seed, TUNED, "sgd"].weights
        expected = MODELS["vgg7"](3, 4)
        initialise(expected, seed)
        scale_badly(expected, seed, 1)
        assert same(runs[seed, "init", "sgd"].weights, [weight.detach() for weight in expected.parameters()])
        assert not torch.equal(runs[seed, "init", "sgd"].weights[0], hidden)
        assert torch.equal(runs[seed, "init", "sgd"].weights[1], head)
        assert runs[seed, "init", "sgd"].rates == (0.5, 0.01)


def test_other_widths_are_other_networks_with_the_same_rates() -> None:
    runs, _ = watched_runs(replace(SETTINGS, variations=choose(("width",))))
    for seed, (name, factor) in product(SETTINGS.seeds, WIDTHS.items()):
        run = runs[seed, name, "sgd"]
        assert [len(weight) for weight in run.weights] == [8 * factor, 4]
        assert run.rates == (0.5, 0.01)
        assert run.weights[0].std().item() == pytest.approx(math.sqrt(2 / 12), rel=0.35)  # He et al. (2015)


def test_every_seed_variation_and_method_is_one_run() -> None:
    settings = replace(SETTINGS, epochs=1, variations=choose(("width", "init")))
    runs, _ = watched_runs(settings, ("sgd", "recommended"))
    variations = ("tuned", "init", "width x 0.5", "width x 2")
    assert list(runs) == list(product((0, 1), variations, ("sgd", "recommended")))


def test_the_kinds_that_are_chosen_come_after_the_tuned_setting() -> None:
    assert KINDS == ("lr", "init", "width")
    assert choose(()) == (TUNED,)
    assert choose(("width",)) == (TUNED, "width x 0.5", "width x 2")
    assert choose(("init", "lr")) == choose(("lr", "init"))
    assert choose(KINDS) == tuple(VARIATIONS)
    assert next(iter(VARIATIONS)) == TUNED
