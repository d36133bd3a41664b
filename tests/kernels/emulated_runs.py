"""Runs on the emulated device that several test files take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends.device_state import Readback
from tests.helpers import Case
from tests.kernels.emulated_cuda import EMULATED_CUDA, EmulatedCudaKernel

SHAPES = [(6, 3, 3, 3), (6,), (7, 2400), (0, 4), (), (5, 11)]
OPTIONS: dict[str, Any] = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 0.02}
RELATIVE: dict[str, Any] = {**OPTIONS, "lr": 0.1, "scale": "relative"}
FROZEN: dict[str, Any] = {**OPTIONS, "norms": "freeze", "head": "plain", "decay": "shape"}


def begun(case: Case, steps: int = 2, backend: str = EMULATED_CUDA) -> tuple[list[Parameter], ScaleAmendedSGD]:
    params, optimizer = case.run(backend, steps)
    case.set_grads(params, steps)
    return params, optimizer


def give_scaler(optimizer: ScaleAmendedSGD, found_inf: Tensor, scale: Tensor | None = None) -> None:
    """What a GradScaler sets for a step."""
    vars(optimizer).update(grad_scale=torch.ones(()) if scale is None else scale, found_inf=found_inf)


def refuse(*_: object) -> None:
    raise AssertionError("an event while a graph is captured")


@contextmanager
def captured(emulation: ModuleType, stream: int = 5) -> Iterator[None]:
    """Captures what is put on the stream; CUDA allows nobody to make, ask or await an event meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmulatedCudaKernel, "current_stream", stream)
        for name in ("__init__", "has_arrived", "wait"):
            patch.setattr(Readback, name, refuse)
        emulation.begin_capture(stream)
        try:
            yield
        finally:
            emulation.end_capture(stream)
