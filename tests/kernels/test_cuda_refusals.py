"""What the CUDA backend says of a driver that refuses, of a missing one and of wrong arguments."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from tests.helpers import Case, assert_close
from tests.kernels.emulated_runs import OPTIONS, SHAPES, begun

LAUNCH, COPY = "cudaLaunchKernelEx", "cudaMemcpyAsync"
LAUNCH_FAILED, ASSERTED, NOT_SUPPORTED = 719, 710, 801

PLAN: dict[str, Any] = {
    "device": 0,
    "tensors": [(6, 0, 0)],
    "layers": [(0, True, 3.0, 2.0, 1.0, False)],
    "eps": 1e-3,
    "shape_decay": False,
    "track_norms": True,
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (LAUNCH, r"CUDA: launching a (step|norm pass) over 6 tensors on device 0 failed: cudaErrorLaunchFailure, "),
        (COPY, r"CUDA: sending tables to device 0 failed: "),
    ],
)
def test_a_refusal_of_the_driver(emulation: ModuleType, function: str, message: str, first: bool) -> None:
    """It says what was attempted, the weights stay, and the next step is right: a first update is still one."""
    case = Case(SHAPES, options={**OPTIONS, "dampening": 0.5})
    params, optimizer = begun(case, 0 if first else 2)
    if function == COPY and not first:
        for param in params:  # new buffers: their addresses have to be sent
            optimizer.state[param]["momentum_buffer"] = optimizer.state[param]["momentum_buffer"].clone()
    emulation.fail_next(function, LAUNCH_FAILED)
    before = [param.detach().clone() for param in params]
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    optimizer.step()
    for ours, theirs in zip(params, case.run("reference", 1 if first else 3)[0], strict=True):
        assert_close(ours, theirs, torch.float32)


@pytest.mark.parametrize("error", [LAUNCH_FAILED, ASSERTED])
def test_the_failure_of_an_earlier_kernel_is_said_to_be_one(emulation: ModuleType, error: int) -> None:
    """Whoever launched it: the step is only the next to ask the driver for anything."""
    _, optimizer = begun(Case(SHAPES, options=OPTIONS))
    emulation.fail_next("cudaStreamIsCapturing", error)
    with pytest.raises(RuntimeError, match=r"A kernel that was launched before failed.* CUDA_LAUNCH_BLOCKING=1"):
        optimizer.step()


def test_a_refusal_that_is_the_calls_own_blames_no_kernel(emulation: ModuleType) -> None:
    _, optimizer = begun(Case(SHAPES, options=OPTIONS))
    emulation.fail_next(LAUNCH, NOT_SUPPORTED)
    with pytest.raises(RuntimeError, match=r"cudaErrorNotSupported, an error of the emulated device$"):
        optimizer.step()


def test_a_step_that_was_refused_is_not_counted(emulation: ModuleType) -> None:
    _, optimizer = begun(Case(SHAPES, options=OPTIONS), 2)
    (backend,) = optimizer._stepper.backends or []
    emulation.fail_next(LAUNCH, LAUNCH_FAILED)
    with pytest.raises(RuntimeError, match="launching a step"):
        optimizer.step()
    assert vars(backend)["kernel"].steps == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"driver": 0}, "no driver is installed"),
        ({"devices": 0}, "counting the devices .* cudaErrorNoDevice"),
    ],
)
def test_without_a_driver_or_device(emulation: ModuleType, settings: dict[str, int], message: str) -> None:
    for name, value in settings.items():
        setattr(emulation.settings(), name, value)
    with pytest.raises(RuntimeError, match=message):
        emulation.cuda_devices()


def test_a_device_that_cannot_run_the_kernels(emulation: ModuleType) -> None:
    emulation.fail_next("cudaOccupancyMaxActiveBlocksPerMultiprocessor", 209)
    with pytest.raises(RuntimeError, match="how many thread blocks device 1 holds failed: cudaErrorNoKernelImage"):
        emulation.check_cuda_device(1)
    emulation.check_cuda_device(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda plan: plan.attach(16, 0, 0, 0, 0, 0, 0, 0, 0),
            "tables: got an address that is not aligned, want 32 bytes",
        ),
        (lambda plan: plan.attach(32, 0, 8, 8, 8, 8, 8, 8, 0), "row_norm_sq: got a null address"),
        (lambda plan: plan.attach(32, 8, 8, 8, 0, 8, 8, 8, 0), "flags: got a null address"),
        (lambda plan: plan.attach(32, 8, 8, 8, 8, 8, 0, 8, 0), "gradient_norm_sq: got a null address"),
        (lambda plan: plan.attach(32, 8, 8, 8, 8, 8, 8, 0, 0), "gradient_sums: got a null address"),
        (lambda plan: plan.measure(b"\0", 0), "attach: has not been called"),
        (lambda plan: plan.place(b"", bytes(8), bytes(8), 0), "weights: got 0 bytes"),
        (lambda plan: plan.place(b"\1" * 8, b"", bytes(8), 0), "momentum_buffers: got 0 bytes"),
        (lambda plan: plan.place(b"\1" * 8, bytes(8), b"", 0), "params: got 0 bytes"),
        (lambda plan: plan.measure(b"\1", 0), "weights: got a null address for tensor 0"),
        (lambda plan: plan.step(b"\1" * 8, b"\0", bytes(48), bytes(8), 0, 0, False, 0), "weights: got a null"),
        (lambda plan: plan.place(b"\1" * 8, bytes(8), b"\1" * 8, 0), "params: tensor 0 has an address and is no"),
        (lambda plan: plan.measure(b"\1\1", 0), "chosen: got 2 bytes"),
        (lambda plan: plan.step(bytes(16), b"\0", bytes(48), bytes(8), 0, 0, False, 0), "grads: got 16 bytes"),
        (lambda plan: plan.step(bytes(8), b"\3", bytes(48), bytes(8), 0, 0, False, 0), "grad_dtypes: got dtype code 3"),
        (
            lambda plan: plan.step(bytes(8), b"\1", bytes(48), bytes(8), 0, 0, False, 0),
            "grad_dtypes: tensor 0 has a 16-bit",
        ),
        (lambda plan: plan.step(bytes(8), b"\0", bytes(40), bytes(8), 0, 0, False, 0), "values: got 40 bytes"),
        (lambda plan: plan.step(bytes(8), b"\0", bytes(48), b"", 0, 0, False, 0), "lr_addresses: got 0 bytes"),
    ],
)
def test_wrong_arguments(emulation: ModuleType, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(emulation.CudaPlan(**PLAN))


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ([(0, True, True, 1)] * 2, "precision: got 2 entries, want none or 1"),
        ([(0, False, True, 1)], "precision: got stochastic rounding of a tensor that has nothing in bfloat16"),
    ],
)
def test_wrong_precision(emulation: ModuleType, precision: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        emulation.CudaPlan(**PLAN, precision=precision)


def test_the_relative_scale_wants_tracked_norms(emulation: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"^relative: got it without track_norms"):
        emulation.CudaPlan(**{**PLAN, "track_norms": False}, relative=True)


def test_wrong_arguments_for_a_master(emulation: ModuleType) -> None:
    plan = emulation.CudaPlan(**PLAN, precision=[(1, False, False, 0)])
    with pytest.raises(ValueError, match=r"params: tensor 0 has .* is a master and has no address"):
        plan.place(b"\1" * 8, bytes(8), bytes(8), 0)
    with pytest.raises(ValueError, match="grad_dtypes: tensor 0 has a 16-bit"):
        plan.step(bytes(8), b"\2", bytes(48), bytes(8), 0, 0, False, 0)
