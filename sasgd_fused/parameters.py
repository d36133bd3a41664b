"""Parameters and their groups: which of them a step may update, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused.hyperparameters import check_hyperparameters
from sasgd_fused.layers import check_layer_options, parameter_name
from sasgd_fused.memory import is_opaque

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_distinct(params: Sequence[Any]) -> None:
    """Checks that no tensor, named or not, comes twice.

    Raises:
        ValueError: one does; the message names it.
    """
    seen = set()
    for position, param in enumerate(params):
        name, tensor = param if isinstance(param, tuple) else (f"parameter {position}", param)
        if id(tensor) in seen:
            raise ValueError(f"params: {name} comes twice in one group, want every parameter once")
        seen.add(id(tensor))


def check_group(group: Mapping[str, Any], index: int) -> None:
    """Checks a parameter group that is to be the optimizer's, and its parameters.

    Raises:
        TypeError, ValueError: one of its values or parameters is not what is wanted.
    """
    check_hyperparameters(group)
    check_layer_options(group)
    for position, param in enumerate(group["params"]):
        check_parameter(param, parameter_name(group, index, position))


def takes_part(param: Tensor, name: str) -> bool:
    """Returns whether a step may update a parameter: not one that no step could, such as a quantized weight.

    Raises:
        ValueError: it has a gradient, and is sparse, complex, integer, of an unsupported precision, or its elements
            share memory.
    """
    reason = _why_not(param)
    if reason and param.grad is not None:
        raise ValueError(f"params: {name} {reason}")
    return not reason and (param.requires_grad or param.grad is not None or not is_opaque(param))


def check_parameter(param: Tensor, name: str) -> None:
    """Checks that a parameter can be updated if it is to be trained.

    A tensor that is no `torch.nn.Parameter` is given its gradient by hand: it is not frozen.

    Raises:
        ValueError: it is sparse, complex, integer, of an unsupported precision, or its elements share memory.
    """
    reason = _why_not(param)
    if reason and (param.requires_grad or not isinstance(param, Parameter)):
        raise ValueError(f"params: {name} {reason}")


def _why_not(param: Tensor) -> str | None:
    if param.is_nested:
        return "is a nested tensor, want a dense one"
    if param.layout != torch.strided:
        return f"has layout {param.layout}, want a dense tensor"
    if param.dtype not in SUPPORTED_DTYPES:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED_DTYPES)
        return f"is {param.dtype}, want one of {wanted}"
    strides = zip(param.stride(), param.shape, strict=True)
    if param.numel() and any(stride == 0 and size > 1 for stride, size in strides):
        return "is an expanded tensor, want one whose elements have memory of their own"
    return None
