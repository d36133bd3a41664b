"""What others put into the optimizer's state, take out of it or exchange between two steps."""

from __future__ import annotations

import weakref
from typing import Any, Literal

import pytest
import torch
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends.fused import FusedBackend
from tests.helpers import FAST_BACKENDS, assert_close, backends

pytestmark = pytest.mark.usefixtures("default_device")


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("norms", ["track", "freeze"])
def test_anything_else_in_the_state_is_left_alone(backend: str, norms: str) -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.1, momentum=0.9, backend=backend, norms=norms)
    notes: dict[Any, Any] = optimizer.state
    notes["note"] = 3
    for _ in range(2):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
    assert notes["note"] == 3
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[weight]["momentum_buffer"].shape == (2, 2)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("norms", ["track", "freeze"])
def test_exchanged_entries_of_the_state(norms: Literal["track", "freeze"], backend: str) -> None:
    """The same buffers and norms, in the same order of the dictionary, belong to others now."""

    def train(name: str) -> list[Parameter]:
        params = [Parameter(torch.full((3, 3), k + 1.0)) for k in range(3)]
        optimizer = ScaleAmendedSGD(params, lr=0.01, momentum=0.9, norms=norms, backend=name)
        for step in range(3):
            for k, param in enumerate(params):
                param.grad = torch.full_like(param, 0.1 * (k + 1))
            if step == 1:
                entries = [optimizer.state.pop(param) for param in params]
                for param, entry in zip((params[2], params[0], params[1]), entries, strict=True):
                    optimizer.state[param] = entry
            optimizer.step()
        return params

    for actual, expected in zip(train(backend), train("reference"), strict=True):
        assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_state_that_is_emptied_after_the_first_step(momentum: float, backend: str) -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.25, momentum=momentum, norms="freeze", backend=backend)
    for _ in range(2):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
        optimizer.state_dict()
        optimizer.state.clear()
    # 1 - 2 / 4, then with the norm of that, 1 / 2
    assert weight.flatten().tolist() == pytest.approx([0.5 - 0.125] * 4)


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_another_momentum_buffer_of_one_element(backend: str) -> None:
    """It equals the one before, so nothing but its identity tells them apart."""
    weight = Parameter(torch.ones(1))
    optimizer = ScaleAmendedSGD([weight], lr=0.1, momentum=0.9, backend=backend)
    weight.grad = torch.ones(1)
    optimizer.step()
    before = optimizer.state[weight]["momentum_buffer"]
    other = optimizer.state[weight]["momentum_buffer"] = before.clone()
    optimizer.step()
    assert before.item() == 1.0
    assert other.item() == pytest.approx(1.9)


@pytest.mark.parametrize("backend", backends())
def test_a_momentum_buffer_that_does_not_fit_is_found_when_it_is_needed(backend: str) -> None:
    """It was put in while its parameter had no gradient."""
    weight, other = Parameter(torch.ones(2, 3)), Parameter(torch.ones(2))
    optimizer = ScaleAmendedSGD([weight, other], lr=0.1, momentum=0.9, backend=backend)
    for param in (weight, other):
        param.grad = torch.ones_like(param)
    optimizer.step()
    before = weight.detach().clone()
    optimizer.state[weight]["momentum_buffer"] = torch.ones(1)
    weight.grad = None
    optimizer.step()
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match=r"^momentum_buffer of parameter 0 of group 0: got shape \(1,\), want"):
        optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_what_others_keep_in_the_state_costs_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step after which they stored another number or tensor is like the one before."""
    weights = [Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))]
    optimizer = ScaleAmendedSGD(weights, lr=0.1, momentum=0.9, backend=backend)
    for step in range(3):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        for weight in weights:
            optimizer.state[weight].update(step=step, old=weight.detach().clone(), count=torch.tensor(1.0))
        if step == 1:
            monkeypatch.setattr(FusedBackend, "_follow", None)
    assert optimizer.state[weights[0]]["step"] == 2


class _Comparisons(TorchDispatchMode):
    """Counts comparisons of tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.eq
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_exchanged_buffers_are_not_compared(backend: str) -> None:
    """On a GPU that waits for it, and a graph cannot be captured."""
    weights = [Parameter(torch.ones(1)), Parameter(torch.ones(2))]
    optimizer = ScaleAmendedSGD(weights, lr=0.1, momentum=0.9, backend=backend)
    for step in range(3):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
            if step:
                optimizer.state[weight] = {"momentum_buffer": optimizer.state[weight]["momentum_buffer"].clone()}
        with _Comparisons() as comparisons:
            optimizer.step()
        assert not comparisons.count
    assert optimizer.state[weights[0]]["momentum_buffer"].item() == pytest.approx(1 + 0.9 + 0.81)


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
@pytest.mark.parametrize("norms", ["track", "freeze"])
def test_what_is_taken_out_of_the_state_is_freed(norms: Literal["track", "freeze"], backend: str) -> None:
    """At once if it is not the optimizer's, else by the next step, though that does not update its parameter."""
    idle, weight = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([idle, weight], lr=0.1, momentum=0.9, norms=norms, backend=backend)
    for param in (idle, weight):
        optimizer.state[param]["old"] = torch.ones(2)
        param.grad = torch.ones(2, 2)
    optimizer.step()
    optimizer.step()
    optimizer.state_dict()  # what the device knows of norms is known
    old = weakref.ref(optimizer.state[idle].pop("old"))
    assert old() is None
    buffer = weakref.ref(optimizer.state.pop(idle)["momentum_buffer"])
    idle.grad = None
    optimizer.step()
    assert buffer() is None
