"""The networks: as they are described, of any width, and initialised well or badly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bench.cases import vgg13_cifar
from experiments.models import MODELS, PreActivation, initialise, scale_badly

WIDTHS = (0.5, 2.0)


def network(name: str, width: float = 1, channels: int = 3, classes: int = 4) -> nn.Sequential:
    return MODELS[name](channels, classes, width)


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


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", MODELS)
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


def test_initialisation_follows_the_seed_and_he() -> None:
    models = [MODELS["vgg7"](1, 10) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        initialise(model, seed)
    first, second, other = (list(model.parameters()) for model in models)
    assert all(map(torch.equal, first, second))
    assert not any(map(torch.equal, first, other))
    norms = [weight.square().sum().item() / len(weight) for weight in first]
    assert norms[1:] == pytest.approx([2, 2, 2, 2, 2, 1], rel=0.1)


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
