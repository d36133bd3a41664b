"""What the CUDA backend promises beyond right numbers, under the emulation: launches, streams, graphs."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import torch

from sasgd_fused.backends import device_state
from sasgd_fused.backends.fused import FusedBackend
from tests.helpers import Case, assert_close, assert_same_run
from tests.kernels.emulated_cuda import EMULATED_CUDA, EmulatedCudaKernel
from tests.kernels.emulated_runs import FROZEN, OPTIONS, RELATIVE, SHAPES, begun, captured, give_scaler
from tests.tiers import thin

LAUNCH = "cudaLaunchKernelEx"
MASTERS = {**OPTIONS, "master_weights": True, "momentum_dtype": torch.bfloat16, "rounding": "stochastic"}


class Operations:
    """Counts what was put on streams since it was last asked."""

    def __init__(self, emulation: ModuleType) -> None:
        self._emulation = emulation
        self._seen = len(emulation.stream_operations())

    def new(self) -> list[tuple[str, int, int]]:
        """The function, device and stream of each."""
        operations = self._emulation.stream_operations()
        new, self._seen = operations[self._seen :], len(operations)
        return [operation[:3] for operation in new]

    def count(self) -> Counter[str]:
        return Counter(function for function, _, _ in self.new())


@thin
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize(("multiprocessors", "resident_blocks"), [(1, 0), (4, 0), (4, 1), (3, 2)])
@pytest.mark.parametrize("options", [OPTIONS, FROZEN], ids=["track", "freeze"])
def test_schedules_grids_and_residency(
    emulation: ModuleType, seed: int, multiprocessors: int, resident_blocks: int, options: dict[str, Any]
) -> None:
    """Nothing depends on who comes first, on the size of the grid, or on how many blocks run at once."""
    settings = emulation.settings()
    settings.seed, settings.multiprocessors, settings.resident_blocks = seed, multiprocessors, resident_blocks
    case = Case(SHAPES, options=options)
    assert_same_run(case, EMULATED_CUDA)
    here, _ = case.run(EMULATED_CUDA)
    emulation.reset()
    for ours, plain in zip(here, case.run(EMULATED_CUDA)[0], strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        pytest.param(torch.float32, OPTIONS, id="track"),
        pytest.param(torch.float32, FROZEN, id="freeze"),
        pytest.param(torch.float32, RELATIVE, id="relative"),
        pytest.param(torch.bfloat16, MASTERS, id="masters"),
        pytest.param(torch.bfloat16, {**OPTIONS, "rounding": "stochastic"}, id="stochastic"),
    ],
)
def test_a_step_is_one_launch_and_nothing_else(
    emulation: ModuleType, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """With other gradients and another learning rate every time."""
    case = Case(SHAPES, dtype=dtype, options=options)
    params, optimizer = begun(case)
    operations = Operations(emulation)
    kept = []
    for step in range(3, 6):
        optimizer.step()
        kept += [param.grad for param in params]  # so that the next ones lie elsewhere
        case.set_grads(params, step)
        optimizer.param_groups[0]["lr"] *= 0.9
        assert operations.count() == {LAUNCH: 1}


def test_a_norm_pass_is_one_launch_more(emulation: ModuleType) -> None:
    params, optimizer = begun(Case(SHAPES, options=OPTIONS))
    operations = Operations(emulation)
    with torch.no_grad():
        params[0].mul_(2)
    optimizer.step()
    assert operations.count() == {LAUNCH: 2}


def test_a_pass_over_gradients_is_one_launch_more(emulation: ModuleType) -> None:
    """As long as one of them may have no norm, of which the device tells late."""
    case = Case(SHAPES, options={**RELATIVE, "weight_decay": 0.0})
    params = case.params()
    optimizer = case.optimizer(params, EMULATED_CUDA)
    operations, launches = Operations(emulation), []
    for step in range(5):
        case.set_grads(params, step)
        assert params[1].grad is not None
        params[1].grad *= step > 1
        optimizer.step()
        launches.append(operations.count()[LAUNCH])
    assert launches == [3, 2, 2, 1, 1]  # the first one has a norm pass too


@pytest.mark.parametrize(
    ("tensors", "groups", "launches"),
    [(1100, 3, 1), (700, 700, 2), pytest.param(5000, 1, 2, marks=pytest.mark.kernels)],
)
def test_launches_of_many_tensors_and_groups(emulation: ModuleType, tensors: int, groups: int, launches: int) -> None:
    """The largest networks of torchvision have about a thousand tensors; more are no error."""
    case = Case(
        [(3, 2)] * tensors,
        options={"lr": 0.01, "momentum": 0.9},
        groups=[(range(first, tensors, groups), {"lr": 0.01 + 1e-5 * first}) for first in range(groups)],
    )
    params, optimizer = begun(case, 1)
    operations = Operations(emulation)
    optimizer.step()
    assert operations.count() == {LAUNCH: launches}
    for ours, theirs in zip(params, case.run("reference", 2)[0], strict=True):
        assert_close(ours, theirs, torch.float32)


def test_stream_and_device(emulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """All work goes to the current stream, and to the device of the plan; the current device stays."""
    monkeypatch.setattr(EmulatedCudaKernel, "current_stream", 7)
    monkeypatch.setattr(EmulatedCudaKernel, "current_index", 1)
    operations = Operations(emulation)
    assert_same_run(Case(SHAPES, options=OPTIONS), EMULATED_CUDA)
    assert {(device, stream) for _, device, stream in operations.new()} == {(1, 7)}
    monkeypatch.setattr(EmulatedCudaKernel, "current_index", 0)
    begun(Case(SHAPES))
    assert {device for _, device, _ in operations.new()} == {0}


def test_a_step_asks_twice_for_the_stream(emulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it, whether a graph records it and torch has to be told of it, and for the launch."""
    _, optimizer = begun(Case(SHAPES, options=OPTIONS))
    asked: list[EmulatedCudaKernel] = []

    def raw_stream(kernel: EmulatedCudaKernel) -> int:
        asked.append(kernel)
        return kernel.current_stream

    monkeypatch.setattr(EmulatedCudaKernel, "raw_stream", raw_stream)
    optimizer.step()
    assert len(asked) == 2


def test_no_other_device_gets_a_context(emulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would take hundreds of megabytes of it for each process: a norm pass, steps and addresses, and a report."""
    monkeypatch.setattr(EmulatedCudaKernel, "current_index", 1)
    params, optimizer = begun(Case(SHAPES, options=OPTIONS))
    with torch.no_grad():
        params[0].mul_(2)
    optimizer.step()
    optimizer.layer_report()
    emulation.check_cuda_device(1)
    assert emulation.has_context(1)
    assert not emulation.has_context(0)


@pytest.mark.parametrize("current", [0, 1])
def test_the_current_device_stays(emulation: ModuleType, current: int, monkeypatch: pytest.MonkeyPatch) -> None:
    emulation.set_device(current)
    for index in (0, 1):
        monkeypatch.setattr(EmulatedCudaKernel, "current_index", index)
        _, optimizer = begun(Case(SHAPES, options=OPTIONS))
        optimizer.step()
        assert emulation.current_device() == current


@pytest.mark.parametrize("options", [OPTIONS, FROZEN], ids=["track", "freeze"])
def test_a_captured_step(emulation: ModuleType, options: dict[str, Any]) -> None:
    """Norms are tracked in the graph; an overflow between replays leaves no trace."""
    case = Case(SHAPES, options=options)
    params, optimizer = begun(case)
    found_inf = torch.zeros(())
    give_scaler(optimizer, found_inf)
    before = [param.detach().clone() for param in params]
    with captured(emulation):
        optimizer.step()
    assert all(map(torch.equal, params, before)), "a capture runs nothing"

    def replay(step: int, overflow: bool) -> None:
        values = case.params()
        case.set_grads(values, step)
        for param, value in zip(params, values, strict=True):
            param.grad.copy_(value.grad)
        found_inf.fill_(float(overflow))
        emulation.replay(5)

    replay(2, False)
    with torch.no_grad():
        weights = [param.clone() for param in params]
    replay(3, True)
    assert all(map(torch.equal, params, weights))
    replay(3, False)
    for ours, theirs in zip(params, case.run(EMULATED_CUDA, 4)[0], strict=True):
        assert torch.equal(ours, theirs)
    assert not any(row.stale_steps for row in optimizer.layer_report())


def test_a_capture_without_a_step_before_says_what_to_do(emulation: ModuleType) -> None:
    case = Case(SHAPES, options=OPTIONS)
    params = case.params()
    optimizer = case.optimizer(params, EMULATED_CUDA)
    case.set_grads(params, 0)
    with (
        captured(emulation),
        pytest.raises(RuntimeError, match=r"CUDA graph: .* take a step before the capture"),
    ):
        optimizer.step()
    optimizer.step()
    for ours, theirs in zip(params, case.run("reference", 1)[0], strict=True):
        assert_close(ours, theirs, torch.float32)


def test_what_several_graphs_write_is_kept_once(emulation: ModuleType) -> None:
    _, optimizer = begun(Case(SHAPES, options=OPTIONS))
    with captured(emulation):
        optimizer.step()
    kept = len(device_state._captured)
    with captured(emulation):
        optimizer.step()
    assert len(device_state._captured) == kept


@pytest.mark.parametrize("layout", ["contiguous", "every_second"])
def test_memory_that_a_graph_writes_is_not_freed(emulation: ModuleType, layout: str) -> None:
    """Nor the dense copies of parameters with gaps."""

    def is_kept(captures: bool) -> bool:
        _, optimizer = begun(Case(SHAPES, layout=layout))
        if captures:
            with captured(emulation):
                optimizer.step()
        (backend,) = optimizer._stepper.backends or []
        assert isinstance(backend, FusedBackend)
        strided = backend.weights.strided.values()
        written = [weakref.ref(tensor) for tensor in (*backend.device_state.carried, *strided)]
        del backend, optimizer, strided
        gc.collect()
        return all(reference() is not None for reference in written)

    assert not is_kept(False)
    assert is_kept(True)
