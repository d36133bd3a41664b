"""On a GPU: the host never waits in a step, steps follow their stream, and every run has the same bits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.info import describe
from tests.helpers import DEVICE, LOW_PRECISION, Case, assert_close, backends, cuda_only, randn
from tests.kernels.cuda_runs import (
    FREEZE,
    LONG,
    SHAPES,
    TRACK,
    assert_same_bits,
    busy_device,
    fixed_grads,
    give,
    gradients,
    torch_sees_no_waiting,
)

pytestmark = [cuda_only, pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")]
on_kernels = pytest.mark.parametrize("backend", backends(["native", "triton"]))
over_rules = pytest.mark.parametrize("rule", [TRACK, FREEZE], ids=["track", "freeze"])


def plainly(optimizer: ScaleAmendedSGD) -> Callable[[], object]:
    return optimizer.step


def with_numbers_on_the_device(optimizer: ScaleAmendedSGD) -> Callable[[], object]:
    optimizer.param_groups[0]["lr"] = torch.tensor(optimizer.param_groups[0]["lr"], device=DEVICE)
    vars(optimizer)["grad_scale"] = torch.ones((), device=DEVICE)  # as GradScaler does
    vars(optimizer)["found_inf"] = torch.zeros((), device=DEVICE)
    return optimizer.step


def with_a_scaler(optimizer: ScaleAmendedSGD) -> Callable[[], object]:
    scaler = GradScaler(DEVICE.type, init_scale=1.0)
    scaler.scale(torch.ones(1, device=DEVICE))  # makes the scale

    def step() -> None:
        scaler.step(optimizer)
        scaler.update()

    return step


@on_kernels
@over_rules
@pytest.mark.parametrize("manner", [plainly, with_numbers_on_the_device, with_a_scaler])
def test_the_host_runs_ahead(manner: Any, rule: dict[str, Any], backend: str) -> None:
    """Steps are queued behind a busy device, and come to the same as steps that are waited for one by one."""
    case = Case(SHAPES, options=rule)
    grads = gradients(case, 9)
    params, expected = case.params(), case.params()
    optimizer, other = case.optimizer(params, backend), case.optimizer(expected, backend)
    step, other_step = manner(optimizer), manner(other)
    for values in grads:
        give(expected, values)
        other_step()
        torch.cuda.synchronize()
    for values in grads[:3]:  # until buffers are there and the host has heard of it
        give(params, values)
        step()
        torch.cuda.synchronize()
    with busy_device(), torch_sees_no_waiting():
        for values in grads[3:]:
            give(params, values)
            step()
    assert_same_bits(params, optimizer, expected, other)


@on_kernels
@over_rules
@pytest.mark.parametrize("grad_layout", ["contiguous", "transposed"])
def test_gradients_may_be_freed_before_the_kernel_runs(grad_layout: str, rule: dict[str, Any], backend: str) -> None:
    """As by zero_grad(): their memory goes to others while the step still waits for its turn."""
    case = Case(SHAPES, grad_layout=grad_layout, options=rule)
    params = case.params()
    optimizer = case.optimizer(params, backend)
    grads = gradients(case, 6)
    others = []
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    for _ in range(6):
        give(params, grads.pop(0))
        optimizer.step()
        optimizer.zero_grad()
        others.append([torch.full_like(param, float("nan")) for param in params])
    assert_same_bits(params, optimizer, *case.run(backend, 6))


@on_kernels
@over_rules
def test_a_step_runs_on_the_current_stream(rule: dict[str, Any], backend: str) -> None:
    """The gradients arrive late on one of two streams by turns; on any other the step would not see them."""
    case = Case(SHAPES, options=rule)
    params = case.params()
    optimizer = case.optimizer(params, backend)
    grads, write = gradients(case, 4), fixed_grads(params)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for number, values in enumerate(grads):
        stream, before = streams[number % 2], streams[1 - number % 2]
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LONG // 10)
            write(values)
            optimizer.step()
    torch.cuda.synchronize()
    assert_same_bits(params, optimizer, *case.run(backend, 4))


@on_kernels
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_every_run_has_the_same_bits(dtype: torch.dtype, backend: str) -> None:
    """Also where other work takes multiprocessors away, so that blocks run in another order."""
    options = {**TRACK, "lr": 1e-3, "output_width": 10_000}  # or the momentum in float16 overflows
    case = Case([(1000, 1300), (77, 1000), (5,), (10, 77)], dtype, options=options)
    first = case.run(backend, 5)
    left, right = randn((2048, 2048)), torch.empty(2048, 2048, device=DEVICE)
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(300):
            torch.mm(left, left, out=right)
    assert_same_bits(*first, *case.run(backend, 5))
    torch.cuda.synchronize()


@on_kernels
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_it_computes_what_the_reference_computes_on_the_cpu(dtype: torch.dtype, backend: str) -> None:
    case = Case(SHAPES, dtype, options=TRACK)
    params, _ = case.run(backend, 4)
    expected = [Parameter(param.detach().cpu()) for param in case.params()]
    reference = case.optimizer(expected, "reference")
    for values in gradients(case, 4):
        give(expected, [value.cpu() for value in values])
        reference.step()
    for actual, want in zip(params, expected, strict=True):
        assert_close(actual.cpu(), want, dtype)


def kernels_of(body: Callable[[], object], folder: Path) -> list[str]:
    """The names of the kernels that a body launches."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        body()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "kernel"]


@on_kernels
@over_rules
@pytest.mark.filterwarnings("ignore")  # the profiler's own
def test_a_step_is_one_launch_or_two(rule: dict[str, Any], backend: str, tmp_path: Path) -> None:
    """For as many tensors as DenseNet-201 has, in two groups and three dtypes."""
    if not kernels_of(lambda: torch.ones(3, device=DEVICE).mul_(2), tmp_path):
        pytest.skip("the profiler sees no kernels on this machine")
    params = [
        Parameter(randn((17, 13) if number % 3 else (17,)).to(LOW_PRECISION[number // 3 % 3])) for number in range(604)
    ]
    groups = [{"params": params[::2]}, {"params": params[1::2], "weight_decay": 0.0}]
    optimizer = ScaleAmendedSGD(groups, backend=backend, **rule)
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(3):
        optimizer.step()
        torch.cuda.synchronize()
    assert len(kernels_of(optimizer.step, tmp_path)) == (2 if backend == "triton" else 1)


@on_kernels
def test_more_elements_than_32_bits_count(backend: str) -> None:
    """Gradients of 1 at both ends and on both sides of 2^31; every other element stays, and all are in the norm."""
    rows, columns = 2, 2**30 + 37
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of free memory on the GPU")
    param = Parameter(torch.ones(rows, columns, dtype=torch.bfloat16, device=DEVICE))
    param.grad = torch.zeros_like(param)
    places = [0, 2**31 - 1, 2**31, rows * columns - 1]
    for place in places:
        param.grad.view(-1).narrow(0, place, 1).fill_(1.0)
    optimizer = ScaleAmendedSGD([param], lr=0.5 / columns, momentum=0.9, backend=backend)
    (row,) = optimizer.layer_report()
    assert row.row_norm_sq == pytest.approx(columns, rel=1e-9)
    optimizer.step()  # s = ‖W‖² = columns, so that lr · s = 0.5
    assert [param.detach().view(-1)[place].item() for place in places] == [0.5] * 4
    assert int(param.detach().ne(1.0).sum()) == 4
    assert int(optimizer.state[param]["momentum_buffer"].ne(0.0).sum()) == 4
    (row,) = optimizer.layer_report()
    assert row.row_norm_sq == pytest.approx((rows * columns - 4 * 0.75) / rows, rel=1e-9)


@on_kernels
def test_what_cannot_run_on_the_device_is_named(backend: str) -> None:
    where = re.escape(str(DEVICE))
    with pytest.raises(RuntimeError, match=rf"backend: cannot run on {where} .*'{backend}': .*float64"):
        ScaleAmendedSGD([Parameter(torch.ones(2, 2, dtype=torch.float64, device=DEVICE))], backend=backend)
    param = Parameter(torch.ones(2, 2, device=DEVICE))
    optimizer = ScaleAmendedSGD([param], momentum=0.9, backend=backend)
    param.grad = torch.ones_like(param)
    optimizer.state[param]["momentum_buffer"] = torch.ones(2, 2)
    with pytest.raises(ValueError, match=rf"momentum_buffer of .*: got .* on cpu, want .* {where}"):
        optimizer.step()
    assert bool(param.eq(1).all())


@on_kernels
def test_the_device_is_in_the_info(backend: str) -> None:
    assert re.search(rf"{DEVICE.type}\S* +{backend} +float32, bfloat16, float16", describe())
