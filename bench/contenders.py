"""The optimizers that are compared, all with the same hyperparameters.

The learning rate is so small that the weights hardly move: a measurement of thousands of steps with
the same gradient neither blows up nor drifts to zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LR = 1e-6
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4

Step = Callable[[], object]
Contender = Callable[[list[Tensor]], tuple[torch.optim.Optimizer, Step]]


def _torch(**options: bool) -> Contender:
    """torch.optim.SGD with its implementation chosen by `options`."""

    def make(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options)
        return optimizer, optimizer.step

    return make


def _ours(*, refresh: bool = False, **options: Any) -> Contender:
    """ScaleAmendedSGD with `options`; with `refresh` every step begins with a norm pass."""

    def make(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
        # Imported late, so that torch's contenders can be timed without the package.
        from sasgd_fused import ScaleAmendedSGD

        optimizer = ScaleAmendedSGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options)

        def refresh_and_step() -> None:
            optimizer.refresh_norms()
            optimizer.step()

        return optimizer, refresh_and_step if refresh else optimizer.step

    return make


def _torch_compiled(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
    """torch.optim.SGD by `torch.compile`, which compiles at the first call of the step that is returned."""
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    optimizer.step()  # makes the momentum buffers, so that one compilation serves all later steps

    def step() -> None:
        optimizer.step()

    return optimizer, torch.compile(step)


CONTENDERS: dict[str, Contender] = {
    "torch fused": _torch(fused=True),
    "torch foreach": _torch(foreach=True),
    "torch for-loop": _torch(foreach=False),
    "native": _ours(backend="native"),
    "native, frozen norms": _ours(backend="native", norms="freeze"),
    "native, norm pass": _ours(backend="native", refresh=True),
    "native, bfloat16 momentum": _ours(backend="native", momentum_dtype=torch.bfloat16, rounding="stochastic"),
    "native, nearest bfloat16 momentum": _ours(backend="native", momentum_dtype=torch.bfloat16),
    "foreach": _ours(backend="foreach"),
    "reference": _ours(backend="reference"),
}
# Not in the tables of the CPU, where compiling takes a minute for a large network, and Triton has only an interpreter.
GPU_CONTENDERS = {**CONTENDERS, "triton": _ours(backend="triton"), "torch compiled": _torch_compiled}


def why_unavailable(contender: str) -> str | None:
    """Why a contender cannot run here (not installed, not compiled), or None if it can."""
    parameter = torch.ones(2, 2, requires_grad=True)
    parameter.grad = torch.ones(2, 2)
    try:
        _, step = CONTENDERS[contender]([parameter])
        step()
    except (ImportError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
