"""A picture of everything that an optimizer may change, so that a test can say: nothing did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@contextmanager
def nothing_changes(optimizer: Optimizer) -> Iterator[None]:
    """Holds weights, gradients, state, hyperparameters and version counters afterwards against those before."""
    before = picture(optimizer)
    yield
    assert picture(optimizer) == before


def picture(optimizer: Optimizer) -> list[Any]:
    """Bits, layouts and version counters of all tensors, and all numbers; equal only if nothing was written."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [
        [(id(param), _facts(param), _facts(param.grad)) for param in params],
        [(id(param), _facts(state)) for param, state in optimizer.state.items()],
        [{key: _facts(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
    ]


def bits(tensor: Tensor) -> list[int]:
    """The tensor's bytes in the order of its elements: equal for equal bits, not-a-number included."""
    elements = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
    return elements.view(torch.uint8).tolist()


def _facts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _facts(item) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return repr(value)
    if value.layout != torch.strided or value.device.type == "meta":
        return id(value), value._version
    return value.shape, value.dtype, value.stride(), value.data_ptr(), value._version, bits(value)
