"""The optimizers that are compared, all with the same hyperparameters.

The learning rate is so small that the weights hardly move: a measurement of thousands of steps with
the same gradient neither blows up nor drifts to zero.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

LR = 1e-6
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
# Gradients stay the same from step to step, so the momentum buffer tends to ten times the gradient: about 1e-2, far
# from denormal numbers, which some processors handle a hundred times slower.
GRADIENT_SCALE = 1e-3

Step = Callable[[], object]
Contender = Callable[[list[Tensor]], tuple[torch.optim.Optimizer, Step]]


def _torch(**options: bool) -> Contender:
    """Returns torch.optim.SGD with its implementation chosen by `options`."""

    def make(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options)
        return optimizer, optimizer.step

    return make


def _ours(*, refresh: bool = False, **options: Any) -> Contender:
    """Returns ScaleAmendedSGD with `options`; with `refresh` every step begins with a norm pass."""

    def make(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
        # Imported late, so that torch's contenders can be timed without the package.
        from sasgd_fused import ScaleAmendedSGD

        optimizer = ScaleAmendedSGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options)

        def refresh_and_step() -> None:
            optimizer.refresh_norms()
            optimizer.step()

        return optimizer, refresh_and_step if refresh else optimizer.step

    return make


def _first_step(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
    """Returns a step of the relative scale that knows no norms: each begins with passes over weights and gradients."""
    from sasgd_fused import ScaleAmendedSGD

    optimizer = ScaleAmendedSGD(
        parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, backend="native", scale="relative"
    )
    (backend,) = optimizer._current_backends()
    norms = backend.device_state.carried.gradient_norm_sq  # type: ignore[attr-defined]

    def step() -> None:
        norms.zero_()
        optimizer.refresh_norms()
        optimizer.step()

    return optimizer, step


def _with_instructions(instruction_set: str) -> Contender:
    """Returns the native step with other vector instructions than the best that the processor has."""

    def make(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
        from sasgd_fused import _C

        best = _C.instruction_sets()[0]
        if instruction_set not in _C.instruction_sets():
            raise RuntimeError(f"this processor has no {instruction_set}")
        optimizer, native_step = CONTENDERS["native"](parameters)

        def step() -> None:
            _C.use_instruction_set(instruction_set)
            native_step()
            _C.use_instruction_set(best)

        return optimizer, step

    return make


def replayed(contender: str) -> Contender:
    """Returns the step of another contender, captured in a CUDA graph."""

    def make(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
        if parameters[0].device.type != "cuda":
            raise RuntimeError("only CUDA has graphs")
        optimizer, step = CONTENDERS[contender](parameters)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        return optimizer, graph.replay

    return make


def _torch_compiled(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
    """Makes torch.optim.SGD by `torch.compile`, which compiles at the first call of the step that is returned."""
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    optimizer.step()  # makes the momentum buffers, so that one compilation serves all later steps

    def step() -> None:
        optimizer.step()

    return optimizer, torch.compile(step)


def _others(package: str, module: str, name: str, **options: Any) -> Contender:
    """Returns the optimizer `name` of somebody else's package."""

    def make(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
        found = _timm(module) if package == "timm" else import_module(module)
        optimizer: torch.optim.Optimizer = getattr(found, name)(parameters, lr=LR, weight_decay=WEIGHT_DECAY, **options)
        return optimizer, optimizer.step

    return make


def _timm(module: str) -> ModuleType:
    """Imports a module of timm's optimizers without timm, whose models need a torchvision built for this torch."""
    package = "_optimizers_of_timm"
    if package not in sys.modules:
        spec = find_spec("timm")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'timm'")
        optim = ModuleType(package)
        optim.__path__ = [f"{folder}/optim" for folder in spec.submodule_search_locations]
        sys.modules[package] = optim
    return import_module(f"{package}.{module}")


TORCH: dict[str, Contender] = {
    "torch fused": _torch(fused=True),
    "torch foreach": _torch(foreach=True),
    "torch for-loop": _torch(foreach=False),
}
OURS: dict[str, Contender] = {
    "native": _ours(backend="native"),
    "native, frozen norms": _ours(backend="native", norms="freeze"),
    "native, norm pass": _ours(backend="native", refresh=True),
    "native, relative": _ours(backend="native", scale="relative"),
    "native, relative, first step": _first_step,
    "native, bfloat16 momentum": _ours(backend="native", momentum_dtype=torch.bfloat16, rounding="stochastic"),
    "native, nearest bfloat16 momentum": _ours(backend="native", momentum_dtype=torch.bfloat16),
    "native, baseline": _with_instructions("baseline"),
    "native, avx2": _with_instructions("avx2"),
    "triton": _ours(backend="triton"),
    "foreach": _ours(backend="foreach"),
    "reference": _ours(backend="reference"),
}
# As their users get them, but without clipping, which timm's LAMB does by itself, and without optimi's compensation of
# 16-bit weights: the other contenders have neither.
OTHERS: dict[str, Contender] = {
    "timm LARS": _others("timm", "lars", "Lars", momentum=MOMENTUM),
    "timm LAMB": _others("timm", "lamb", "Lamb", max_grad_norm=None),
    "pytorch_optimizer LARS": _others("pytorch_optimizer", "pytorch_optimizer", "LARS", momentum=MOMENTUM),
    "pytorch_optimizer LAMB": _others("pytorch_optimizer", "pytorch_optimizer", "Lamb"),
    "optimi SGD": _others("optimi", "optimi", "SGD", momentum=MOMENTUM, foreach=True, kahan_sum=False),
}
LARS = ("timm LARS", "pytorch_optimizer LARS")
# On GPUs alone. Compiling takes a minute for a large network on the CPU.
REPLAYED = {f"{name}, graph": replayed(name) for name in ("torch fused", "native", "triton")}
COMPILED = "torch compiled"
CONTENDERS = {**TORCH, **OURS, **OTHERS, **REPLAYED, COMPILED: _torch_compiled}


def why_unavailable(contender: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> str | None:
    """Returns why a contender cannot step parameters of a dtype here (not installed, not compiled), or None if it can.

    Equal elements have to stay finite and nearly equal, and so has what it keeps of them. The fused SGD of torch 2.13
    fails that on a CPU in 16 bits, where it computes the last elements alone
    (https://github.com/pytorch/pytorch/issues/191763).
    """
    parameter = torch.ones(5, 13, dtype=dtype, device=device, requires_grad=True)  # more than full vectors
    parameter.grad = torch.full_like(parameter, GRADIENT_SCALE)
    try:
        optimizer, step = CONTENDERS[contender]([parameter])
        for _ in range(3):
            step()
    except (ImportError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    for name, values in {"weight": parameter.detach(), **optimizer.state[parameter]}.items():
        if isinstance(values, Tensor) and values.shape == parameter.shape:
            low, high = values.min().item(), values.max().item()
            if not high - low <= 0.05 * abs(high):  # NaN too
                return f"its steps are wrong: {name} of equal elements is {low:.3g} to {high:.3g}"
    return None
