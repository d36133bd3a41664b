"""The gradients' norms that Triton carries in the relative scale: unknown ones, skipped steps, captures."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends.fused import FusedBackend
from tests.helpers import Case, assert_close, backends, cpu_only, states_of
from tests.kernels.emulated_cuda import EMULATED_CUDA
from tests.kernels.emulated_runs import SHAPES, begun, give_scaler
from tests.kernels.test_triton_backend import RELATIVE

pytestmark = [cpu_only("Triton's interpreter runs there"), pytest.mark.parametrize("backend", backends(["triton"]))]

CASE = Case(SHAPES, options=RELATIVE)
WITHOUT_DECAY = Case(SHAPES, options={**RELATIVE, "weight_decay": 0.0})


class Event(NamedTuple):
    """A step: what the gradients of every second parameter are multiplied by, None for none; what a GradScaler says."""

    factor: float | None = 1.0
    found_inf: float = 0.0
    loss_scale: float = 1.0


EVENTS = {
    "zeros at first": [Event(0.0), Event(0.0), Event(), Event()],
    "zeros later": [Event(), Event(0.0), Event()],
    "late gradients": [Event(None), Event(), Event(None), Event()],
    "an overflow at first": [Event(found_inf=1.0), Event(), Event(found_inf=1.0), Event()],
    "a loss scale": [Event(loss_scale=1024.0), Event(loss_scale=0.25), Event()],
}
# Whose squares are 0 in float32, where the reference has float64.
TINY = [Event(1e-30), Event(1e-30), Event()]


def after_each(events: list[Event], backend: str, case: Case = CASE) -> list[list[dict[str, Any]]]:
    """The parameters and their states after each step."""
    params = case.params()
    optimizer = case.optimizer(params, backend)
    found = []
    for step, (factor, found_inf, loss_scale) in enumerate(events):
        case.set_grads(params, step)
        for index, param in enumerate(params):
            times = factor if index % 2 == 0 else 1.0
            param.grad = None if times is None else param.grad.mul(times * loss_scale)
        give_scaler(optimizer, torch.tensor(found_inf), torch.tensor(loss_scale))
        optimizer.step()
        states = states_of(optimizer, params)
        found.append([{"param": p.detach().clone(), **cloned(s)} for p, s in zip(params, states, strict=True)])
    return found


def cloned(state: dict[str, Any]) -> dict[str, Tensor]:
    return {key: torch.as_tensor(value).clone() for key, value in state.items()}


@pytest.mark.parametrize("twin", backends([EMULATED_CUDA]))
@pytest.mark.parametrize("events", [*EVENTS.values(), TINY], ids=[*EVENTS, "tiny gradients"])
def test_it_has_the_bits_of_cuda(events: list[Event], twin: str, backend: str) -> None:
    case = WITHOUT_DECAY if events is TINY else CASE  # beside decay they would leave no trace
    for ours, theirs in zip(after_each(events, backend, case), after_each(events, twin, case), strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[key], other[key]) for key in mine)


@pytest.mark.parametrize("events", EVENTS.values(), ids=EVENTS)
def test_it_does_what_the_reference_does(events: list[Event], backend: str) -> None:
    for ours, theirs in zip(after_each(events, backend), after_each(events, "reference"), strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.keys() == other.keys()
            for key in mine:
                # The momentum of a scalar is a sum of such terms, which may cancel out.
                assert_close(mine[key], other[key], torch.float32, key, scale=0.01 if key == "momentum_buffer" else 0.0)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_leaves_the_norm_as_it_was(value: float, backend: str) -> None:
    params, optimizer = begun(CASE, backend=backend)
    before = norms_of(optimizer, params)
    params[0].grad[0] = value
    optimizer.step()
    after = norms_of(optimizer, params)
    assert before[0] == after[0] > 0
    assert before[2] != after[2] > 0


def test_a_step_that_leaves_a_layer_leaves_its_gradients_norm(backend: str) -> None:
    params, optimizer = begun(CASE, backend=backend)
    params[0].grad[0] = float("nan")
    optimizer.step()
    before = norms_of(optimizer, params)
    params[0].data.fill_(1.0)  # put right, which no version counter shows
    optimizer.state[params[0]]["momentum_buffer"].data.zero_()
    CASE.set_grads(params, 3)
    optimizer.step()
    assert bool((params[0] == 1.0).all())
    assert norms_of(optimizer, params)[0] == before[0]
    optimizer.step()
    assert not (params[0] == 1.0).any()
    assert norms_of(optimizer, params)[0] != before[0]


def test_a_skipped_step_takes_no_norm_that_is_unknown(backend: str) -> None:
    params, optimizer = begun(CASE, backend=backend)
    for state in optimizer.state.values():
        state.pop("gradient_norm_sq", None)
    give_scaler(optimizer, torch.ones(()))
    optimizer.step()
    assert not any(norms_of(optimizer, params))
    give_scaler(optimizer, torch.zeros(()))
    optimizer.step()
    assert norms_of(optimizer, params)[0] > 0


def norms_of(optimizer: ScaleAmendedSGD, params: list[Parameter]) -> list[float]:
    """v_b of each parameter, 0 where it is not known."""
    return [state.get("gradient_norm_sq", 0.0) for state in states_of(optimizer, params)]


def test_a_captured_step_takes_unknown_norms(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """The interpreter runs at once what a graph would run when it is replayed."""
    from sasgd_fused.backends.triton.device_table import DeviceTable
    from sasgd_fused.backends.triton.kernel import TritonKernel

    def step(captured: bool) -> list[Tensor]:
        params = CASE.params()
        optimizer = CASE.optimizer(params, backend)
        CASE.set_grads(params, 0)
        params[1].grad.zero_()  # a vector's, of which decay is no part
        optimizer.step()
        CASE.set_grads(params, 1)
        with monkeypatch.context() as patch:
            if captured:
                patch.setattr(TritonKernel, "is_capturing", lambda plan: True)
                patch.setattr(DeviceTable, "_new_on_host", None)  # older versions of torch cannot pin memory then
            optimizer.step()
        (made,) = optimizer._stepper.backends or []
        assert isinstance(made, FusedBackend)
        carried = made.device_state.carried
        memory = set(map(id, made.memory()))
        assert {id(carried.gradient_norm_sq), id(carried.gradient_sums)} <= memory
        assert {id(made.kernel._gradients[0])} <= memory  # type: ignore[attr-defined]
        return [*params, carried.gradient_norm_sq, carried.gradient_sums, carried.flags]

    assert all(map(torch.equal, step(captured=True), step(captured=False)))
