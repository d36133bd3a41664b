"""What a user gives: a network, what it is called with, and a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# One tensor, the positional arguments of a network, or its named ones.
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


def arguments_of(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and the named arguments of a network.

    Raises:
        TypeError: it is neither a tensor, nor a tuple or list, nor a mapping.
        ValueError: a tensor among them is empty, has no values, or has NaN among them.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Tensor):
        args = (inputs,)
    elif isinstance(inputs, Mapping):
        kwargs = dict(inputs)
    elif isinstance(inputs, (tuple, list)):
        args = tuple(inputs)
    else:
        raise TypeError(
            f"inputs: got {type(inputs).__name__}, want a tensor, a tuple of arguments or a mapping from names"
        )
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            check_values(value)
    return args, kwargs


def check_values(inputs: Tensor) -> None:
    """Refuses an input without values.

    Raises:
        ValueError: it is empty or on the meta device, or NaN is among its values.
    """
    if inputs.is_meta:
        raise ValueError("inputs: got a tensor on the meta device, want one with values")
    if not inputs.numel():
        raise ValueError(f"inputs: got an empty tensor, {tuple(inputs.shape)}, want at least one sample")
    if inputs.is_floating_point() and inputs.isnan().any():
        raise ValueError("inputs: got NaN among the values, want numbers")


def check_model(model: nn.Module) -> None:
    """Refuses what is no network, or has no values or no gradients.

    Raises:
        TypeError: it is no module.
        ValueError: its tensors are on the meta device.
        RuntimeError: gradients cannot be had because of ``torch.inference_mode``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError(f"model: got {type(model).__name__} on the meta device, want one with values")
    if torch.is_inference_mode_enabled():
        raise RuntimeError("got a call inside torch.inference_mode, which has no gradients, want it outside")
    if any(tensor.is_inference() for tensor in tensors):
        raise RuntimeError(
            f"model: got {type(model).__name__} with tensors that were made in torch.inference_mode, which have no "
            "gradients, want it made outside"
        )


def check_scalar(loss: Any) -> Tensor:
    """Returns what a loss function has returned, if it is a scalar with a gradient.

    Raises:
        ValueError: it is not.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    got = type(loss).__name__ if not isinstance(loss, Tensor) else tuple(loss.shape)
    if isinstance(loss, Tensor) and loss.numel() == 1:
        got = "a constant"
    raise ValueError(f"loss: got {got}, want a function that returns a scalar which depends on the output")


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns what DataParallel, DistributedDataParallel or torch.compile has wrapped; parameters are the same."""
    while True:
        if hasattr(model, "_orig_mod"):
            inner: Any = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        else:
            return model
        model = inner
