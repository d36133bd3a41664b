"""Training scripts written for torch.optim.SGD run with ScaleAmendedSGD, and unamended they do the very same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import Case, assert_close, backends, states_of
from tests.product.beside_sgd import CASE, both, step

pytestmark = pytest.mark.usefixtures("default_device")


@pytest.mark.parametrize("backend", backends())
def test_hyperparameters_changed_by_hand(backend: str) -> None:
    """Momentum that goes off and comes back, as a warm-up script does it."""
    changes: list[dict[str, Any]] = [
        *({"lr": 0.5}, {"momentum": 0}, {"weight_decay": 0.1}, {"momentum": 0.5}, {"maximize": True}),
        *({"dampening": 0, "nesterov": True}, {"lr": torch.tensor(0.01)}),
    ]

    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        for number, change in enumerate(changes):
            optimizer.param_groups[0].update(change)
            step(optimizer, params, number)

    both(backend, script)


@pytest.mark.parametrize("backend", backends())
def test_gradients_that_come_late_and_vanish(backend: str) -> None:
    present = [{0}, {0, 2}, set(), {1, 2, 3}, {0, 1, 2, 3}, {3}]

    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        for number, indices in enumerate(present):
            CASE.set_grads(params, number)
            for index, param in enumerate(params):
                if index not in indices:
                    param.grad = None
            optimizer.step()

    both(backend, script)


@pytest.mark.parametrize("backend", backends())
def test_unfreezing_with_a_new_group(backend: str) -> None:
    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        for param in params[:2]:
            param.requires_grad_(False)
        for number in range(3):
            CASE.set_grads(params[2:], number)
            optimizer.step()
        for param in params[:2]:
            param.requires_grad_(True)
        extra = {"amend": False} if isinstance(optimizer, ScaleAmendedSGD) else {}
        optimizer.add_param_group({"params": (p for p in params[:2]), "lr": 0.01, **extra})
        for number in range(3, 6):
            step(optimizer, params, number)

    both(backend, script, lambda params: params[2:])


@pytest.mark.parametrize("backend", backends())
def test_a_group_for_every_tensor(backend: str) -> None:
    case = Case([(3, 2) if n % 2 else (4,) for n in range(200)])

    def groups(params: list[Parameter]) -> list[dict[str, Any]]:
        return [
            {"params": p, "lr": 0.001 * n, "momentum": (n % 3) / 4, "weight_decay": n % 2 / 10}
            for n, p in enumerate(params)
        ]

    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        for number in range(3):
            case.set_grads(params, number)
            optimizer.step()

    both(backend, script, groups, case)


@pytest.mark.parametrize("backend", backends())
def test_clipping(backend: str) -> None:
    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        for number in range(3):
            CASE.set_grads(params, number)
            nn.utils.clip_grad_norm_(params, 0.5)
            optimizer.step()

    both(backend, script)


@pytest.mark.parametrize("backend", backends())
def test_gradients_that_autograd_writes_over_in_place(backend: str) -> None:
    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        for number in range(4):
            optimizer.zero_grad(set_to_none=number == 2)
            for _ in range(2):  # gradient accumulation
                sum(((number + 1) * p * p).sum() for p in params).backward()  # type: ignore[union-attr]
            optimizer.step()

    both(backend, script, lr=0.01)


@pytest.mark.parametrize("backend", backends())
def test_a_closure_is_called_once_with_gradients_on(backend: str) -> None:
    calls: list[bool] = []

    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        def closure() -> float:
            calls.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = sum((p * p).sum() for p in params)
            assert isinstance(loss, Tensor)
            loss.backward()
            return loss.item()

        with torch.no_grad():
            losses = [optimizer.step(closure) for _ in range(3)]
        assert all(isinstance(loss, float) for loss in losses)
        assert losses[0] > losses[1]  # type: ignore[operator]

    both(backend, script, dampening=0)
    assert calls == [True] * 6


@pytest.mark.parametrize("backend", backends())
def test_hooks(backend: str) -> None:
    """A hook before the step may still change the gradients."""
    calls: list[str] = []

    def halve(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        calls.append("before")
        for param in optimizer.param_groups[0]["params"]:
            param.grad.mul_(0.5)

    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        optimizer.register_step_pre_hook(halve)
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        for number in range(2):
            step(optimizer, params, number)

    everywhere = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("first")),
        register_optimizer_step_post_hook(lambda *_: calls.append("last")),
    ]
    try:
        both(backend, script)
    finally:
        for handle in everywhere:
            handle.remove()
    assert sorted(calls[:4]) == ["after", "before", "first", "last"]
    assert calls[:4] * 4 == calls


@pytest.mark.parametrize("backend", backends())
def test_momentum_moved_through_data(backend: str) -> None:
    """As scripts do that send the state to another device and back. Nobody reads the memory where it was."""
    left = []

    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        for number in range(6):
            for state in optimizer.state.values():
                left.append(state["momentum_buffer"].data)
                state["momentum_buffer"].data = left[-1].clone()
                left[-1].fill_(100.0)
            step(optimizer, params, number)
        optimizer.state.clear()  # and those that start afresh
        step(optimizer, params, 6)

    both(backend, script)


@pytest.mark.parametrize("backend", backends())
def test_a_model_moved_to_channels_last_on_the_way(backend: str) -> None:
    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        for number in range(4):
            if number == 2:
                params[2].data = params[2].data.to(memory_format=torch.channels_last)
            step(optimizer, params, number)
        assert params[2].is_contiguous(memory_format=torch.channels_last)

    both(backend, script)


@pytest.mark.parametrize("backend", backends())
def test_pruning_and_growing(backend: str) -> None:
    """A parameter gets another shape, with as many elements or not, or is put in the place of another, or goes."""

    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        step(optimizer, params, 0)
        for number, new in enumerate((lambda w: w[:4].clone(), lambda w: w.view(5, 4), lambda w: w.repeat(2, 1)), 1):
            params[0].data = new(params[0].data)
            params[0].grad = None
            optimizer.state.pop(params[0])
            step(optimizer, params, number)
        listed = optimizer.param_groups[0]["params"]
        params[3] = listed[3] = Parameter(params[3].detach() + 1)
        step(optimizer, params, 4)
        del listed[1]
        step(optimizer, params, 5)

    both(backend, script)


@pytest.mark.parametrize("backend", backends())
def test_another_shape_is_another_layer(backend: str) -> None:
    """The same memory as 6 rows and then as 5, the gradient's too: the scale is that of the rows that are there now."""
    (param,) = Case([(6, 5)]).params()
    other = Parameter(param.detach().clone().view(5, 6))
    optimizer = ScaleAmendedSGD([param], lr=0.0, factors="product", backend=backend)
    memory = torch.ones(30)
    param.grad = memory.view(6, 5)
    optimizer.step()
    param.data, param.grad = param.data.view(5, 6), None
    expected = ScaleAmendedSGD([other], lr=0.1, factors="product", backend=backend)
    optimizer.param_groups[0]["lr"] = 0.1
    for tensor, stepping in ((param, optimizer), (other, expected)):
        tensor.grad = memory.view(5, 6)
        stepping.step()
    assert_close(param, other, torch.float32)
    assert optimizer.layer_report()[0].rows == 5


@pytest.mark.parametrize("backend", backends())
def test_a_state_that_is_emptied_or_edited(backend: str) -> None:
    """Frozen norms are state as momentum is: gone with it, and in force as they stand there."""
    case = Case([(6, 5), (4, 6)], options={"lr": 0.01, "norms": "freeze"})
    params, optimizer = case.run(backend)
    optimizer.state.clear()
    now = [row.row_norm_sq for row in optimizer.layer_report()]
    optimizer.step()
    assert [state["row_norm_sq"] for state in states_of(optimizer, params)] == pytest.approx(now, rel=1e-6)
    optimizer.state[params[1]]["row_norm_sq"] = 2.0
    before = params[1].detach().clone()
    optimizer.step()
    assert params[1].grad is not None
    assert_close(params[1], before - 0.01 * 2.0 * params[1].grad, torch.float32)
    assert states_of(optimizer, params)[1]["row_norm_sq"] == 2.0
