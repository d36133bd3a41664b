"""Gradient release beside checkpointing of activations, and with parameters that torch swaps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sasgd_fused import ScaleAmendedSGD, parameter_groups

pytestmark = pytest.mark.usefixtures("default_device")

Segment = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def at_once(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"twice": nn.Linear(4, 4), "once": nn.Linear(4, 4), "head": nn.Linear(4, 2)})


def train(segment: Segment, release: bool, uses: int = 2) -> list[Tensor]:
    model = network()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, momentum=0.9)
    if release:
        optimizer.release_gradients_in_backward()
    for _ in range(3):
        h = torch.ones(3, 4, requires_grad=True)
        for _ in range(uses):
            h = segment(lambda x: model["twice"](x).tanh(), h)
        h = segment(lambda x: model["once"](x).tanh(), h)
        model["head"](h).square().sum().backward()
        optimizer.step()
        if not release:  # what was waiting for the step is freed by it
            optimizer.zero_grad()
    return [param.detach() for param in model.parameters()]


@pytest.mark.parametrize("uses", [1, 2, 3])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing(use_reentrant: bool, uses: int) -> None:
    """A reentrant segment gives its part of a gradient in a backward of its own; `step` has the sum."""
    segment: Segment = partial(checkpoint, use_reentrant=use_reentrant)
    torch.testing.assert_close(train(segment, True, uses), train(at_once, False, uses), rtol=0, atol=0)


def test_a_second_part_after_the_update_is_refused() -> None:
    """What is used outside of the reentrant segment too is updated before the segment is computed again."""
    model = network()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1)
    optimizer.release_gradients_in_backward()
    layer = model["twice"]
    for _ in range(2):  # the second time after a backward that failed
        h = checkpoint(layer, torch.ones(3, 4, requires_grad=True), use_reentrant=True)
        with pytest.raises(RuntimeError, match=r"second part of a gradient .* want checkpoint\(.*use_reentrant=False"):
            layer(h).sum().backward()
        optimizer.zero_grad()
    model["once"](checkpoint(layer, torch.ones(3, 4, requires_grad=True), use_reentrant=True)).sum().backward()


def test_a_model_may_be_converted_by_swapping() -> None:
    model = nn.Linear(3, 2)
    optimizer = ScaleAmendedSGD(model.parameters(), lr=0.1)
    optimizer.release_gradients_in_backward()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.bfloat16)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    for _ in range(2):
        before = model.weight.detach().clone()
        model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        assert not model.weight.equal(before)
    assert model.weight.grad is None  # within backward again


def test_parameters_that_left_are_let_go() -> None:
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = ScaleAmendedSGD([{"params": [weight]} for weight in weights], lr=0.1)
    optimizer.release_gradients_in_backward()
    del optimizer.param_groups[1]
    optimizer.step()
    sum(weight.sum() for weight in weights).backward()
    assert weights[0].grad is None
    assert weights[1].grad is not None


def test_a_parameter_that_no_step_could_update_is_taken_up_later() -> None:
    frozen = nn.Parameter(torch.ones(2, 2, dtype=torch.uint8), requires_grad=False)
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([frozen, weight], lr=0.1)
    optimizer.release_gradients_in_backward()
    frozen.data = torch.ones(2, 2)
    frozen.requires_grad_()
    optimizer.step()
    (weight.sum() + frozen.sum()).backward()
    assert frozen.grad is None
    assert not frozen.eq(1).any()


def test_a_refusal_keeps_the_gradient() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.1)
    optimizer.release_gradients_in_backward()
    optimizer.param_groups[0]["lr"] = "0.1"
    with pytest.raises(TypeError, match=r"lr of parameter group 0: got '0\.1'"):
        weight.sum().backward()
    assert weight.grad is not None
    assert weight.eq(1).all()


@pytest.mark.filterwarnings("error")
def test_memory_that_comes_to_be_shared() -> None:
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = ScaleAmendedSGD(weights, lr=0.01)
    optimizer.release_gradients_in_backward()
    for step in range(4):
        if step == 1:
            weights[1].data = weights[0].data
        sum(weight.sum() for weight in weights).backward()
        optimizer.step()
    assert not any(row.stale_steps for row in optimizer.layer_report())


def test_groups_that_are_edited_between_backwards() -> None:
    """A parameter takes its present group's learning rate; one that was given away keeps its gradient."""
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = ScaleAmendedSGD([{"params": [weight], "lr": 0.1 * k} for k, weight in enumerate(weights)], lr=0.1)
    optimizer.release_gradients_in_backward()
    optimizer.param_groups.reverse()
    optimizer.param_groups[0]["lr"] = 0.5
    del optimizer.param_groups[1]
    sum(weight.sum() for weight in weights).backward()
    assert [weight[0].item() for weight in weights] == [1.0, 1.0, 0.5]
    assert [weight.grad is None for weight in weights] == [True, False, True]
