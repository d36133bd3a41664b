"""Several GPUs in one optimizer: one launch on each, and the numbers of one step for all of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import Case, assert_close, backends, cuda_only
from tests.unchanged import nothing_changes

pytestmark = [
    cuda_only,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.parametrize("backend", backends(["native", "triton"])),
]
SHAPES = [(6, 3, 3, 3), (6,), (9, 6), (5, 9)]
CASE = Case(SHAPES, options={"lr": 0.01, "momentum": 0.9})


def dealt_out(tensors: list[Parameter]) -> list[Parameter]:
    """One here, one there."""
    return [Parameter(tensor.detach().to(f"cuda:{index % 2}")) for index, tensor in enumerate(tensors)]


def give(params: list[Parameter], step: int) -> None:
    here = CASE.params()
    CASE.set_grads(here, step)
    for param, source in zip(params, here, strict=True):
        assert source.grad is not None
        param.grad = source.grad.to(param.device)


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["float", "tensor"])
def test_the_step_is_that_of_the_reference(lr: float | Tensor, current: int, backend: str) -> None:
    """Whatever the current device is, which stays; a learning rate on one device serves the other too."""
    params, expected = dealt_out(CASE.params()), dealt_out(CASE.params())
    on_device = lr.to("cuda:0") if isinstance(lr, Tensor) else lr
    optimizer = ScaleAmendedSGD(params, lr=on_device, momentum=0.9, backend=backend)
    reference = ScaleAmendedSGD(expected, lr=0.01, momentum=0.9, backend="reference")
    with torch.cuda.device(current):
        for step in range(4):
            give(params, step)
            give(expected, step)
            optimizer.step()
            reference.step()
            assert torch.cuda.current_device() == current
    for actual, want in zip(params, expected, strict=True):
        assert actual.device == want.device
        assert_close(actual, want, torch.float32)


def test_an_overflow_on_one_device_stops_both(backend: str) -> None:
    params = dealt_out(CASE.params())
    optimizer = ScaleAmendedSGD(params, lr=0.01, momentum=0.9, backend=backend)
    scaler = GradScaler("cuda", init_scale=1.0)
    scaler.scale(torch.ones(1, device="cuda:0"))  # makes the scale
    give(params, 0)
    assert params[3].grad is not None
    params[3].grad[0, 0] = float("inf")
    with nothing_changes(optimizer, on_device=True):
        scaler.step(optimizer)
        scaler.update()
    give(params, 1)
    before = [param.detach().clone() for param in params]
    scaler.step(optimizer)
    assert not any(map(torch.equal, params, before))


ON_THE_SECOND = """
import sys, torch
from torch.nn import Parameter
from sasgd_fused import ScaleAmendedSGD

param = Parameter(torch.ones(8, 8, device="cuda:1"))
param.grad = torch.ones_like(param)
ScaleAmendedSGD([param], lr=0.1, backend=sys.argv[1]).step()
assert not torch._C._cuda_hasPrimaryContext(0)
"""


def test_no_other_device_gets_a_context(backend: str) -> None:
    """In a process of its own, since here both have one."""
    done = subprocess.run([sys.executable, "-c", ON_THE_SECOND, backend], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
