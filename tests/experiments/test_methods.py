"""The methods that are compared: each optimizer does what its equation says, with the rates and options of its name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from experiments.methods import METHODS, Method
from experiments.models import MODELS, initialise
from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.experiments.steps import LR, WEIGHT_DECAY, gradients, network, take_steps, weights_of

OPTIONS: dict[str, dict[str, Any]] = {
    "plain-head": {"head": "plain"},
    "frozen-norms": {"norms": "freeze"},
    "shape-decay": {"decay": "shape"},
    "product": {"factors": "product"},
}
AMENDED = ["paper", "recommended", *(name for name in METHODS if "+" in name)]


def stepped(name: str) -> list[Tensor]:
    model = network()
    take_steps(model, METHODS[name].build(model, LR, WEIGHT_DECAY, "foreach"))
    return weights_of(model)


def test_a_tuned_method_builds_with_its_rates() -> None:
    calls: list[tuple[Any, ...]] = []

    def build(*arguments: Any) -> Optimizer:
        calls.append(arguments)
        return torch.optim.SGD([torch.zeros(1)])

    model = network()
    tuned = Method("the label", build).tuned(0.5, 0.25)
    tuned.build(model, "reference")
    assert calls == [(model, 0.5, 0.25, "reference")]
    assert (tuned.label, tuned.lr, tuned.weight_decay) == ("the label", 0.5, 0.25)


def test_every_method_has_a_label_of_its_own() -> None:
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


# Equations


def test_fused_sgd_is_sgd_on_these_networks() -> None:
    # torch's fused step ignores the strides of gradients: they must be the parameters' here.
    model = MODELS["vgg7"](1, 10)
    initialise(model, 0)
    plain_model = copy.deepcopy(model)
    fused = METHODS["sgd"].build(model, 0.1, 5e-3, None)
    plain = torch.optim.SGD(plain_model.parameters(), 0.1, 0.9, weight_decay=5e-3, foreach=False, fused=False)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pairs = list(zip(model.parameters(), plain_model.parameters(), strict=True))
    for _ in range(2):
        fused.zero_grad()
        model(images).square().mean().backward()
        for ours, theirs in pairs:
            assert ours.grad is not None
            theirs.grad = ours.grad.clone()
        fused.step()
        plain.step()
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_lars_takes_its_rate_relative_to_the_norm_of_each_layer() -> None:
    model = network()
    weights = weights_of(model)
    velocities = [torch.zeros_like(weight) for weight in weights]
    for step in range(2):
        for weight, velocity, gradient in zip(weights, velocities, gradients(model, step), strict=True):
            trust = weight.norm() / (gradient.norm() + WEIGHT_DECAY * weight.norm())
            velocity.mul_(0.9).add_(trust * (gradient + WEIGHT_DECAY * weight))
            weight.sub_(LR * velocity)
    torch.testing.assert_close(stepped("lars"), weights, rtol=1e-12, atol=1e-14)


def test_adamw_has_its_usual_constants_and_decays_apart_from_the_gradient() -> None:
    model = network()
    weights = weights_of(model)
    means, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step in range(2):
        for weight, mean, square, gradient in zip(weights, means, squares, gradients(model, step), strict=True):
            mean.mul_(0.9).add_(0.1 * gradient)
            square.mul_(0.999).add_(0.001 * gradient**2)
            corrected = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
            weight.mul_(1 - LR * WEIGHT_DECAY).sub_(LR * corrected[0] / (corrected[1].sqrt() + 1e-8))
    torch.testing.assert_close(stepped("adamw"), weights, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", AMENDED)
def test_an_amended_method_has_the_options_that_its_name_says(name: str) -> None:
    parts = ["plain-head", "frozen-norms", "shape-decay"] if name == "recommended" else name.split("+")[1:]
    options = {key: value for part in parts for key, value in OPTIONS[part].items()}
    model = network()
    groups = parameter_groups(model)
    take_steps(model, ScaleAmendedSGD(groups, LR, 0.9, weight_decay=WEIGHT_DECAY, backend="foreach", **options))
    assert all(map(torch.equal, stepped(name), weights_of(model)))


def test_each_choice_of_options_has_one_name_and_does_something_else() -> None:
    assert len(AMENDED) == 2 ** len(OPTIONS)
    assert "paper+plain-head+frozen-norms+shape-decay" not in METHODS  # it is "recommended"
    results = {tuple(torch.cat([weight.flatten() for weight in stepped(name)]).tolist()) for name in AMENDED}
    assert len(results) == len(AMENDED)
