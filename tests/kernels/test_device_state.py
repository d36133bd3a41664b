"""What only the device knows, first updates, frozen norms and skipped steps, reaches the host late and rightly."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from sasgd_fused.backends.device_state import Readback
from sasgd_fused.backends.fused import FusedBackend, Prepared
from sasgd_fused.hyperparameters import StepNumbers
from tests.helpers import Case, assert_close, cpu_only
from tests.kernels.emulated_cuda import EMULATED_CUDA
from tests.kernels.emulated_runs import FROZEN, OPTIONS, SHAPES, begun, captured, give_scaler, refuse

pytestmark = cpu_only("what a device does is emulated")


def assert_same(ours: tuple[list[Parameter], list[float]], theirs: tuple[list[Parameter], list[float]]) -> None:
    """Holds weights and norms of one run against those of another."""
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert_close(a, b, torch.float32)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)


def test_steps_are_counted_where_they_are_launched(device_backend: str) -> None:
    _, optimizer = begun(Case(SHAPES, options=OPTIONS), 3, device_backend)
    (backend,) = optimizer._stepper.backends or []
    assert vars(backend)["kernel"].steps == 3


@pytest.mark.parametrize("options", [OPTIONS, FROZEN, {**FROZEN, "dampening": 0.5}], ids=["track", "freeze", "damped"])
@pytest.mark.parametrize("late", [1, 4, 100])
def test_the_host_may_learn_late(
    device_backend: str, monkeypatch: pytest.MonkeyPatch, late: int, options: dict[str, Any]
) -> None:
    """However long the copies take, steps are right, and a checkpoint waits for them."""
    asked = itertools.count()
    monkeypatch.setattr(Readback, "has_arrived", lambda self: next(asked) % late == late - 1)
    case = Case(SHAPES, options=options)
    params = case.params()
    optimizer = case.optimizer(params, device_backend)
    good = 0
    for attempt in range(6):
        overflow = attempt in (0, 2)
        case.set_grads(params, good)
        give_scaler(optimizer, torch.tensor(float(overflow)))
        optimizer.step()
        good += not overflow
    expected, reference = case.run("reference", good)
    for ours, theirs in zip(params, expected, strict=True):
        assert_close(ours, theirs, torch.float32)
    ours, theirs = (o.state_dict()["state"] for o in (optimizer, reference))
    assert {key: state.keys() for key, state in ours.items()} == {key: state.keys() for key, state in theirs.items()}


def test_new_parameters_find_what_only_the_device_knew(device_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen norms and buffers that have not started outlive a new plan."""
    monkeypatch.setattr(Readback, "has_arrived", lambda self: False)
    case = Case(SHAPES, options={**FROZEN, "dampening": 0.5})
    results = []
    for backend in (device_backend, "reference"):
        params = case.params()
        optimizer = case.optimizer(params, backend)
        for step, overflow in enumerate([True, False, False]):
            case.set_grads(params, step)
            params[2].grad = None if step == 1 else params[2].grad
            give_scaler(optimizer, torch.tensor(float(overflow)))
            optimizer.step()
            if step < 2:
                optimizer.add_param_group({"params": [Parameter(torch.ones(2, 2))]})
        results.append((params, [row.row_norm_sq for row in optimizer.layer_report()]))
    assert_same(*results)


@pytest.mark.parametrize("options", [OPTIONS, FROZEN], ids=["track", "freeze"])
def test_a_capture_is_no_step(emulation: ModuleType, options: dict[str, Any]) -> None:
    """A graph that is never replayed leaves nothing behind, also where it recorded a norm pass or a first update."""
    case = Case(SHAPES, options={**options, "dampening": 0.5})
    results = []
    for backend in (EMULATED_CUDA, "reference"):
        params = case.params()
        optimizer = case.optimizer(params, backend)
        case.set_grads(params, 0)
        give_scaler(optimizer, torch.ones(()))
        optimizer.step()
        with torch.no_grad():
            params[2].mul_(1.5)
        if backend == EMULATED_CUDA:
            with captured(emulation):
                optimizer.step()
            assert not optimizer.state_dict()["state"]
        give_scaler(optimizer, torch.zeros(()))
        optimizer.step()
        results.append(params)
        assert not any(row.stale_steps for row in optimizer.layer_report())
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, torch.float32)


def test_another_layout_before_the_first_update(device_backend: str) -> None:
    """The buffer of a skipped step is converted, and has still taken nothing."""
    results = []
    for backend in (device_backend, "reference"):
        case = Case([(6, 3, 3, 3), (5, 6)], options={**OPTIONS, "dampening": 0.5})
        params = case.params()
        optimizer = case.optimizer(params, backend)
        for overflow in (True, False):
            case.set_grads(params, 0)
            give_scaler(optimizer, torch.tensor(float(overflow)))
            optimizer.step()
            params[0].data = params[0].data.to(memory_format=torch.channels_last)
        results.append(params)
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, torch.float32)


@pytest.mark.parametrize("late", [1, 3])
@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_does_not_freeze(
    device_backend: str, monkeypatch: pytest.MonkeyPatch, spoilt: float, late: int
) -> None:
    asked = itertools.count()
    monkeypatch.setattr(Readback, "has_arrived", lambda self: next(asked) % late == late - 1)
    case = Case(SHAPES, options=FROZEN)
    params = case.params()
    optimizer = case.optimizer(params, device_backend)
    params[0].data[0] = spoilt
    case.set_grads(params, 0)
    optimizer.step()
    params[0].data.copy_(case.params()[0])
    optimizer.state[params[0]]["momentum_buffer"].zero_()
    norm = float(params[0].detach().double().square().sum()) / SHAPES[0][0]
    for step in range(1, 4):
        case.set_grads(params, step)
        optimizer.step()
    assert bool(params[0].isfinite().all())
    assert optimizer.state_dict()["state"][0]["row_norm_sq"] == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("late", [False, True])
def test_a_frozen_norm_that_is_edited(device_backend: str, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """The other norms stay what they were, also where the host had not learnt them."""
    monkeypatch.setattr(Readback, "has_arrived", lambda self: not late)
    case = Case(SHAPES, options=FROZEN)
    results = []
    for backend in (device_backend, "reference"):
        params, optimizer = case.run(backend, 2)
        optimizer.state[params[0]]["row_norm_sq"] = 7.0
        case.set_grads(params, 2)
        optimizer.step()
        results.append((params, [row.row_norm_sq for row in optimizer.layer_report()]))
    assert_same(*results)


@pytest.mark.parametrize("options", [OPTIONS, FROZEN], ids=["track", "freeze"])
def test_a_state_that_is_emptied(device_backend: str, options: dict[str, Any]) -> None:
    case = Case(SHAPES, options=options)
    results = []
    for backend in (device_backend, "reference"):
        params, optimizer = case.run(backend, 2)
        optimizer.state_dict()  # which knows the norms
        optimizer.state.clear()
        norms = [row.row_norm_sq for row in optimizer.layer_report()]
        case.set_grads(params, 2)
        optimizer.step()
        results.append((params, norms))
    assert_same(*results)


def test_a_learning_rate_of_zero_asks_the_device_nothing(device_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no update, so no frozen norm is to be learnt."""
    _, optimizer = begun(Case(SHAPES, options={**FROZEN, "lr": 0.0}), backend=device_backend)
    monkeypatch.setattr(Readback, "__init__", refuse)
    optimizer.step()


def test_a_learning_rate_on_the_device(device_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lr, step = torch.tensor(0.5), FusedBackend.step

    def step_with_lr(self: FusedBackend, prepared: Prepared, numbers: StepNumbers) -> None:
        values = [group._replace(lr=0.0) for group in numbers.values]
        step(self, prepared, replace(numbers, values=values, device_lrs={0: lr}))

    monkeypatch.setattr(FusedBackend, "step", step_with_lr)
    for options in (OPTIONS, FROZEN):
        case = Case(SHAPES, options=options)
        lr.fill_(1e-4)
        params, optimizer = case.run(device_backend, 2)
        lr.fill_(2e-5)
        case.set_grads(params, 2)
        optimizer.step()
        expected, reference = case.run("reference", 2)
        reference.param_groups[0]["lr"] = 2e-5
        case.set_grads(expected, 2)
        reference.step()
        for ours, theirs in zip(params, expected, strict=True):
            assert_close(ours, theirs, torch.float32)
        assert optimizer.state_dict()["state"].keys() == reference.state_dict()["state"].keys()


def test_a_step_reads_nothing_from_the_device(device_backend: str) -> None:
    """Not the overflow flag, not the loss scale, and no copy that would have to be waited for."""

    class NoReading(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default), func
            return func(*args, **(kwargs or {}))

    for options in (OPTIONS, FROZEN):
        case = Case(SHAPES, options=options)
        params = case.params()
        optimizer = case.optimizer(params, device_backend)
        for step in range(4):
            case.set_grads(params, step)
            give_scaler(optimizer, torch.tensor(float(step == 1)), torch.tensor(4.0))
            with NoReading():
                optimizer.step()


@pytest.mark.parametrize("options", [OPTIONS, FROZEN], ids=["track", "freeze"])
def test_the_layer_report_is_one_transfer(
    device_backend: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    case = Case(SHAPES, options=options)
    _, optimizer = begun(case, backend=device_backend)
    optimizer.state_dict()  # by now the host knows the frozen norms
    (backend,) = optimizer._stepper.backends or []
    assert isinstance(backend, FusedBackend)
    on_device = set(map(id, backend.device_state.carried))
    waited: list[object] = []
    wait, to_list = Readback.wait, torch.Tensor.tolist

    def counted_list(tensor: torch.Tensor) -> Any:
        waited.extend([tensor] if id(tensor) in on_device else [])
        return to_list(tensor)

    def counted_wait(readback: Readback) -> list[torch.Tensor]:
        waited.append(readback)
        return wait(readback)

    monkeypatch.setattr(Readback, "wait", counted_wait)
    monkeypatch.setattr(torch.Tensor, "tolist", counted_list)
    report = optimizer.layer_report()
    assert len(waited) == 1
    monkeypatch.undo()
    expected = case.run("reference", 2)[1].layer_report()
    assert [row.row_norm_sq for row in report] == pytest.approx([row.row_norm_sq for row in expected], rel=1e-6)
