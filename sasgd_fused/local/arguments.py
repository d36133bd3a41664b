"""What a network is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

# One tensor, the positional arguments of a network, or its named ones.
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


def arguments_of(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and the named arguments of a network.

    Raises:
        TypeError: it is neither a tensor, nor a tuple or list, nor a mapping.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    raise TypeError(f"inputs: got {type(inputs).__name__}, want a tensor, a tuple of arguments or a mapping from names")
