"""The prototype of the relative scale against its equations, written out for a network of two layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.study.methods import ABLATIONS
from experiments.study.relative import RelativeSGD

LR, MOMENTUM, DECAY = 0.1, 0.9, 0.02


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6, 3, bias=False)).double()


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    # Of different lengths, so that it shows which step a norm is of.
    return [(1 + step) ** 2 * torch.randn(p.shape, generator=generator).to(p) for p in model.parameters()]


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, grads: list[Tensor]) -> None:
    for param, grad in zip(model.parameters(), grads, strict=True):
        param.grad = grad.clone()
    optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def moved_at_first(**options: Any) -> list[Tensor]:
    """Returns by what the first step moves each parameter."""
    model = network()
    before = weights(model)
    take_step(model, RelativeSGD(model.parameters(), LR, MOMENTUM, DECAY, **options), gradients(model, 0))
    return [after - old for after, old in zip(weights(model), before, strict=True)]


def test_three_steps_are_those_of_the_equations() -> None:
    model = network()
    convolution, bias, head = weights(model)
    optimizer = RelativeSGD(model.parameters(), LR, MOMENTUM, DECAY)
    v_convolution = v_bias = v_head = torch.tensor(0.0)
    buffers = [torch.zeros_like(weight) for weight in (convolution, bias, head)]
    for step in range(3):
        of_convolution, of_bias, of_head = gradients(model, step)
        take_step(model, optimizer, [of_convolution, of_bias, of_head])

        q_convolution = (of_convolution + DECAY * convolution).square().sum()
        q_bias = of_bias.square().sum()
        q_head = (of_head + DECAY * head).square().sum()
        if step == 0:
            v_convolution, v_bias, v_head = q_convolution, q_bias, q_head
        # Fan-in: two channels of 3 x 3 in a group, and six. Two blocks. The bias has six elements.
        s_convolution = convolution.norm() / (18 * 2 * v_convolution).sqrt()
        s_bias = 0.03 * 6**0.5 / (2 * v_bias).sqrt()
        s_head = head.norm() / (6 * 2 * v_head).sqrt()
        buffers[0] = MOMENTUM * buffers[0] + s_convolution * (of_convolution + DECAY * convolution)
        buffers[1] = MOMENTUM * buffers[1] + s_bias * of_bias + DECAY * bias
        buffers[2] = MOMENTUM * buffers[2] + s_head * (of_head + DECAY * head)
        convolution, bias, head = (
            old - LR * buffer for old, buffer in zip((convolution, bias, head), buffers, strict=True)
        )
        v_convolution = 0.9 * v_convolution + 0.1 * q_convolution
        v_bias = 0.9 * v_bias + 0.1 * q_bias
        v_head = 0.9 * v_head + 0.1 * q_head

        torch.testing.assert_close(weights(model), [convolution, bias, head], rtol=1e-12, atol=1e-14)


# The first step of each ablation, by that of the whole


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"fan_in": False}, (18**0.5, 1, 6**0.5)),
        ({"depth": "linear"}, (0.5**0.5, 0.5**0.5, 0.5**0.5)),
        ({"depth": "none"}, (2**0.5, 2**0.5, 2**0.5)),
        ({"vector_share": 0.3}, (1, 10, 1)),
        ({"beta": 0.5}, (1, 1, 1)),
        ({"exact": True}, (1, 1, 1)),
        ({"growth": 4.0}, (1, 1, 1)),
    ],
)
def test_an_ablation_changes_the_first_step_by_a_factor(options: dict[str, Any], factors: tuple[float, ...]) -> None:
    # Without its decay, which no factor changes, the bias moves by its scale.
    decay = LR * DECAY * weights(network())[1]
    (convolution, bias, head), changed = moved_at_first(), moved_at_first(**options)
    expected = [factors[0] * convolution, factors[1] * (bias + decay) - decay, factors[2] * head]
    torch.testing.assert_close(changed, expected, rtol=1e-12, atol=1e-14)


def test_a_plain_head_takes_the_step_of_sgd_and_is_no_block() -> None:
    convolution, _, _ = moved_at_first()
    changed = moved_at_first(head="plain")
    torch.testing.assert_close(changed[0], 2**0.5 * convolution, rtol=1e-12, atol=1e-14)
    model = network()
    step_of_sgd = -LR * (gradients(model, 0)[2] + DECAY * weights(model)[2])
    torch.testing.assert_close(changed[2], step_of_sgd, rtol=1e-12, atol=1e-14)


def test_plain_vectors_take_their_share_of_the_rate() -> None:
    model = network()
    expected = -LR * (0.1 * gradients(model, 0)[1] + DECAY * weights(model)[1])
    changed = moved_at_first(vectors="plain", vector_share=0.1)
    torch.testing.assert_close(changed[1], expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(changed[::2], moved_at_first()[::2], rtol=0, atol=0)


def test_decay_by_shape_is_added_to_the_scaled_gradient() -> None:
    model = network()
    grad, weight = gradients(model, 0)[2], weights(model)[2]
    expected = -LR * (weight.norm() / (6 * 2) ** 0.5 * grad / grad.norm() + DECAY * weight)
    torch.testing.assert_close(moved_at_first(decay="shape")[2], expected, rtol=1e-12, atol=1e-14)


def test_decoupled_decay_is_apart_from_the_momentum() -> None:
    model = network()
    optimizer = RelativeSGD(model.parameters(), LR, MOMENTUM, DECAY, decay="decoupled")
    weight, (*others, grad) = weights(model)[2], gradients(model, 0)
    buffer = weight.norm() / (6 * 2) ** 0.5 * grad / grad.norm()
    take_step(model, optimizer, [*others, grad])
    after = (1 - LR * DECAY) * weight - LR * buffer
    torch.testing.assert_close(weights(model)[2], after, rtol=1e-12, atol=1e-14)
    take_step(model, optimizer, [*others, 0 * grad])
    again = (1 - LR * DECAY) * after - LR * MOMENTUM * buffer
    torch.testing.assert_close(weights(model)[2], again, rtol=1e-12, atol=1e-14)


# From step to step


def scale_of(optimizer: RelativeSGD, model: nn.Sequential, grad: Tensor) -> float:
    """Returns the scale of the head's gradient in a step without momentum and decay."""
    before = weights(model)[2]
    grads = gradients(model, 0)
    take_step(model, optimizer, [grads[0], grads[1], grad])
    moved = before - weights(model)[2]
    return float((moved.norm() / (LR * grad.norm())).item())


@pytest.mark.parametrize(
    ("options", "squares"),
    [
        ({}, (1, 1, 0.9 + 0.1 * 100)),
        ({"beta": 0.0}, (1, 1, 100)),
        ({"beta": 0.5}, (1, 1, 50.5)),
        ({"exact": True}, (1, 100, 1)),
        ({"growth": 4.0}, (1, 1, 25)),
        ({"growth": 16.0}, (1, 1, 0.9 + 0.1 * 100)),
    ],
)
def test_norms_of_earlier_steps_count(options: dict[str, Any], squares: tuple[float, ...]) -> None:
    model = network()
    optimizer = RelativeSGD(model.parameters(), LR, 0.0, 0.0, **options)
    unit = torch.ones(3, 6).double() / 18**0.5
    for factor, square in zip((1, 10, 1), squares, strict=True):
        size = weights(model)[2].norm().item()
        assert scale_of(optimizer, model, factor * unit) == pytest.approx(size / (6 * 2 * square) ** 0.5, rel=1e-9)


def test_the_first_gradient_that_is_not_zero_counts_whole() -> None:
    model = network()
    optimizer = RelativeSGD(model.parameters(), LR, 0.0, 0.0)
    unit = torch.ones(3, 6).double() / 18**0.5
    before = weights(model)[2]
    take_step(model, optimizer, [*gradients(model, 0)[:2], 0 * unit])
    assert torch.equal(weights(model)[2], before)
    assert scale_of(optimizer, model, 5 * unit) == pytest.approx(before.norm().item() / (12 * 25) ** 0.5)


def test_a_gradient_that_is_not_finite_leaves_the_norm() -> None:
    model = network()
    optimizer = RelativeSGD(model.parameters(), LR, 0.0, 0.0)
    take_step(model, optimizer, gradients(model, 0))
    before = [optimizer.state[param]["gradient_norm_sq"] for param in model.parameters()]
    take_step(model, optimizer, [torch.full_like(grad, torch.inf) for grad in gradients(model, 0)])
    assert [optimizer.state[param]["gradient_norm_sq"] for param in model.parameters()] == before


def test_weights_of_zero_can_move() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight.zero_()
    optimizer = RelativeSGD(model.parameters(), LR, 0.0, 0.0)
    unit = torch.ones(3, 6).double() / 18**0.5
    assert scale_of(optimizer, model, unit) == pytest.approx((1e-3 * 3) ** 0.5 / 12**0.5)


def test_a_factor_of_the_loss_changes_nothing() -> None:
    model, other = network(), network()
    optimizer, other_optimizer = (RelativeSGD(m.parameters(), LR, MOMENTUM, 0.0) for m in (model, other))
    for step in range(3):
        take_step(model, optimizer, gradients(model, step))
        take_step(other, other_optimizer, [1000 * grad for grad in gradients(other, step)])
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-12, atol=1e-14)


def test_what_is_not_to_be_amended_is_a_vector() -> None:
    model = network()
    convolution, bias, head = model.parameters()
    groups = [{"params": [convolution, bias], "amend": False}, {"params": [head], "amend": True}]
    before, grads = weights(model), gradients(model, 0)
    take_step(model, RelativeSGD(groups, LR, MOMENTUM, 0.0), grads)
    expected = before[0] - LR * 0.03 * before[0].numel() ** 0.5 * grads[0] / grads[0].norm()
    torch.testing.assert_close(weights(model)[0], expected, rtol=1e-12, atol=1e-14)


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="closure: got one, want None"):
        RelativeSGD(network().parameters(), LR).step(lambda: 0.0)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_trains_otherwise_than_the_whole(name: str) -> None:
    model = network()
    whole = copy.deepcopy(model)
    method = ABLATIONS[name]
    optimizer = method.build(model, LR, method.decays[-1])
    with_all = RelativeSGD(whole.parameters(), LR, MOMENTUM, 5e-4)
    for step in range(3):
        take_step(model, optimizer, gradients(model, 9 * (step % 2)))
        take_step(whole, with_all, gradients(whole, 9 * (step % 2)))
    assert not all(torch.equal(*pair) for pair in zip(weights(model), weights(whole), strict=True))
