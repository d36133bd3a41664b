"""The study's methods: each takes steps on every kind of network, and those that are made here do what they say."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.methods import why_unavailable
from experiments.study.dog import DoG
from experiments.study.methods import ABLATIONS, STUDIED, StudiedMethod, half_decades
from experiments.study.networks import NETWORKS, make_network
from tests.experiments.steps import LR, WEIGHT_DECAY, give_gradients, gradients, network, take_steps, weights_of

IMAGE = (1, 14, 14)
KINDS = ("affine-mlp", "layernorm-mlp", "unnormalized-mlp", "vgg", "affine-resnet", "affine-depthwise", "transformer")


def middle(method: StudiedMethod) -> float:
    return method.rates[len(method.rates) // 2]


def make(name: str) -> nn.Module:
    return make_network(name, IMAGE, 10, 8, 3, "plain", 0)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images = torch.randn(8, *IMAGE, generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(images), torch.randint(10, (8,), generator=generator)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", STUDIED)
def test_every_method_moves_every_matrix_of_every_kind_of_network(name: str) -> None:
    if reason := why_unavailable(name):
        pytest.skip(reason)
    method = STUDIED[name]
    for kind in KINDS:
        model = make(kind)
        before = weights_of(model)
        train(model, method.build(model, middle(method), method.decays[0]))
        for param, old in zip(model.parameters(), before, strict=True):
            assert param.isfinite().all(), kind
            assert param.dim() < 2 or not torch.equal(param, old), kind


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_sgd_is_sgd_on_these_networks(name: str) -> None:
    # torch's fused step ignores the strides of gradients: they must be the parameters' here.
    model = make(name)
    plain_model = copy.deepcopy(model)
    train(model, STUDIED["sgd"].build(model, 0.1, 5e-3))
    train(plain_model, torch.optim.SGD(plain_model.parameters(), 0.1, 0.9, weight_decay=5e-3, foreach=False))
    for ours, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_every_method_has_a_label_of_its_own_and_its_rates_in_order() -> None:
    for methods in (STUDIED, ABLATIONS):
        assert len({method.label for method in methods.values()}) == len(methods)
        for method in methods.values():
            for low, high in pairwise(method.rates):
                assert high / low == pytest.approx(10**0.5, rel=0.03)


def test_no_ablation_has_the_key_of_a_method() -> None:
    assert not set(STUDIED) & set(ABLATIONS)


def test_half_decades_surround_the_middle() -> None:
    assert half_decades(0.3, 5) == (0.03, 0.095, 0.3, 0.95, 3.0)
    assert half_decades(1.0, 3) == (0.32, 1.0, 3.2)


# Equations


def first_step(name: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Returns weights of two convolutions and a head, their gradients, and by what the first step moves them."""
    model = network()
    before = weights_of(model)
    take_steps(model, STUDIED[name].build(model, LR, WEIGHT_DECAY), [0])
    return before, gradients(model, 0), [old - new for old, new in zip(before, weights_of(model), strict=True)]


def test_unit_scales_by_the_mean_squared_norm_of_rows() -> None:
    weights, grads, moved = first_step("unit")
    for weight, grad, movement in zip(weights[:2], grads[:2], moved[:2], strict=True):
        scale = weight.square().sum() / len(weight)
        torch.testing.assert_close(movement, LR * scale * (grad + WEIGHT_DECAY * weight), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(moved[2], LR * (grads[2] + WEIGHT_DECAY * weights[2]), rtol=1e-10, atol=1e-12)


def test_recommended_takes_the_mean_rows_for_the_output_width() -> None:
    weights, grads, moved = first_step("recommended")
    for weight, grad, movement in zip(weights[:2], grads[:2], moved[:2], strict=True):
        rows = 5  # the mean of 4 and 6
        expected = LR * (weight.square().sum() / rows * grad + WEIGHT_DECAY * len(weight) / rows * weight)
        torch.testing.assert_close(movement, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(moved[2], LR * (grads[2] + WEIGHT_DECAY * weights[2]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "has_plain_head"), [("paper", False), ("plain-head", True)])
def test_the_papers_output_width_is_the_heads(name: str, has_plain_head: bool) -> None:
    weights, grads, moved = first_step(name)
    scales = [weight.square().sum() / 5 for weight in weights]
    if has_plain_head:
        scales[2] = torch.ones_like(scales[2])
    for weight, grad, movement, scale in zip(weights, grads, moved, scales, strict=True):
        torch.testing.assert_close(movement, LR * scale * (grad + WEIGHT_DECAY * weight), rtol=1e-10, atol=1e-12)


def test_dog_takes_its_rate_from_distance_and_gradients() -> None:
    model = network()
    weights = weights_of(model)
    start, average = torch.cat([weight.flatten() for weight in weights]), [weight.clone() for weight in weights]
    distance, squares = 1e-4 * (1 + start.norm()), torch.tensor(1e-8)
    optimizer = DoG(model.parameters(), LR, WEIGHT_DECAY)
    for step in range(3):
        grads = [grad + WEIGHT_DECAY * w for grad, w in zip(gradients(model, step), weights, strict=True)]
        distance = torch.maximum(distance, (torch.cat([weight.flatten() for weight in weights]) - start).norm())
        squares = squares + sum(grad.square().sum() for grad in grads)
        weights = [w - LR * distance / squares.sqrt() * grad for w, grad in zip(weights, grads, strict=True)]
        share = 9 / (step + 1 + 8)
        average = [(1 - share) * mean + share * w for mean, w in zip(average, weights, strict=True)]
        take_steps(model, optimizer, [step])
        torch.testing.assert_close(weights_of(model), weights, rtol=1e-10, atol=1e-12)
    optimizer.eval()
    torch.testing.assert_close(weights_of(model), average, rtol=1e-10, atol=1e-12)


def test_dog_leaves_what_has_no_gradient() -> None:
    model = network()
    optimizer = DoG(model.parameters())
    give_gradients(model, 0)
    *_, head = model.parameters()
    head.grad = None
    before = weights_of(model)
    optimizer.step()
    assert [torch.equal(*pair) for pair in zip(weights_of(model), before, strict=True)] == [False, False, True]


def test_dog_refuses_a_closure() -> None:
    closure: Any = lambda: 0.0  # noqa: E731
    with pytest.raises(ValueError, match="closure: got one, want None"):
        DoG(network().parameters()).step(closure)
