"""A picture of everything that an optimizer may change, so that a test can say: nothing did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@contextmanager
def nothing_changes(optimizer: Optimizer, on_device: bool = False) -> Iterator[None]:
    """Holds weights, gradients, state, hyperparameters and version counters afterwards against those before.

    Args:
        optimizer: whose tensors and numbers are meant.
        on_device: that only the device knows of a skipped step. The host then raises the version counters of weights
            as for any step, and may make momentum buffers, which checkpoints leave out until they have started; an
            empty buffer has nothing to start, and does not count.
    """
    before = picture(optimizer, on_device)
    yield
    assert picture(optimizer, on_device) == before


def picture(optimizer: Optimizer, on_device: bool = False) -> list[Any]:
    """Bits, layouts and version counters of all tensors, and all numbers; equal only if nothing was written."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state: list[Any]
    if on_device:
        state = [
            (index, key, _facts(value, False))
            for index, of_param in optimizer.state_dict()["state"].items()
            for key, value in of_param.items()
            if not isinstance(value, Tensor) or value.numel()
        ]
    else:
        state = [(id(param), _facts(state)) for param, state in optimizer.state.items()]
    return [
        [(id(param), _facts(param, not on_device), _facts(param.grad)) for param in params],
        state,
        [{key: _facts(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
    ]


def bits(tensor: Tensor) -> list[int]:
    """The tensor's bytes in the order of its elements: equal for equal bits, not-a-number included."""
    elements = torch.empty(tensor.numel(), dtype=tensor.dtype, device="cpu").copy_(tensor.detach().reshape(-1))
    return elements.view(torch.uint8).tolist()


def _facts(value: Any, with_version: bool = True) -> Any:
    if isinstance(value, dict):
        return {key: _facts(item, with_version) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return repr(value)
    if value.layout != torch.strided or value.device.type == "meta":
        return id(value), value._version
    version = value._version if with_version else None
    return value.shape, value.dtype, value.stride(), value.data_ptr(), version, bits(value)
