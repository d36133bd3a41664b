"""torch's database for optimizers like SGD, with ScaleAmendedSGD in its place, and the problem that torch sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
from torch.testing._internal import common_optimizers as theirs
from torch.testing._internal.common_utils import TestCase

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, LAYOUTS, randn

DATABASE: list[Any] = theirs.optim_db
(SGD_INFO,) = (info for info in DATABASE if info.optim_cls is SGD)
INFO = theirs.OptimizerInfo(
    ScaleAmendedSGD,
    optim_inputs_func=theirs.optim_inputs_func_sgd,
    optim_error_inputs_func=theirs.optim_error_inputs_func_sgd,
    scheduler_inputs=SGD_INFO.scheduler_inputs,
    supported_impls=("foreach", "fused"),
    not_og_supported_flags=SGD_INFO.not_og_supported_flags,
    supports_fused_on=("cpu", "cuda"),
)


def configurations(backend: str) -> list[dict[str, Any]]:
    """torch's, made anew, since schedulers change a learning rate that is a tensor in place.

    For Triton, whose interpreter is slow, two: ascent with decay, Nesterov momentum with decay.
    """
    entries = INFO.optim_inputs_func(DEVICE)
    return [entry.kwargs for entry in (entries[5::3] if backend == "triton" else entries)]


def tamed(options: dict[str, Any]) -> dict[str, Any]:
    """Norms that follow the weights make ascent faster than exponential: at torch's 0.001 it overflows in 12 steps."""
    return {**options, "lr": 1e-4} if options.get("maximize") else options


def assert_equal(actual: Any, expected: Any) -> None:
    """Compares tensors and what holds them as torch's tests do, without tolerance."""
    TestCase().assertEqual(actual, expected, rtol=0, atol=0)


class Problem:
    """torch's: the squares of an affine function, whose matrix and offset are sought."""

    def __init__(self, layout: str = "contiguous", device: torch.device = DEVICE) -> None:
        generator = torch.Generator().manual_seed(0)
        self.input, weight, bias = (randn(shape, generator).to(device) for shape in ((5,), (10, 5), (10,)))
        self.params = [Parameter(LAYOUTS[layout](p.shape, p.dtype).copy_(p).to(device)) for p in (weight, bias)]

    @torch.no_grad()
    def copy(self, other: Problem) -> None:
        for param, source in zip(self.params, other.params, strict=True):
            param.copy_(source)

    def loss(self) -> Tensor:
        weight, bias = self.params
        return (weight.mv(self.input) + bias).square().sum()

    def run(self, optimizer: Optimizer, steps: int, schedulers: Sequence[Any] = ()) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss.detach()

        for _ in range(steps):
            loss = optimizer.step(closure)
            for scheduler in schedulers:
                scheduler.step(*([loss] if isinstance(scheduler, ReduceLROnPlateau) else []))

    def goes_right(self, optimizer: Optimizer, schedulers: Sequence[Any] = (), backend: str = "") -> bool:
        before = self.loss()
        self.run(optimizer, 2 if backend == "triton" else 20, schedulers)
        return bool(self.loss() > before if optimizer.param_groups[0]["maximize"] else self.loss() < before)


def begun(backend: str, steps: int, named: bool = False, **options: Any) -> tuple[Problem, Any]:
    problem = Problem()
    params: Any = zip(("weight", "bias"), problem.params, strict=True) if named else problem.params
    optimizer = ScaleAmendedSGD(params, backend=backend, **options)
    problem.run(optimizer, steps)
    return problem, optimizer
