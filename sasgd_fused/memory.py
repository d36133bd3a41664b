"""The memory of parameters: whether a kernel can reach it, whether it is there, and which parameters share it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from sasgd_fused.shards import is_sharded, local_of


def is_opaque(tensor: Tensor) -> bool:
    """Returns whether a tensor computes by rules of its own (quantized, wrapped, fake), without memory for a kernel.

    DTensors are not meant: their local parts are plain tensors.
    """
    dispatch = type(tensor).__torch_dispatch__
    return dispatch is not torch._C._disabled_torch_dispatch_impl and not is_sharded(tensor)


def is_plain(tensor: Tensor) -> bool:
    """Returns whether it is a tensor like any other, with memory of its own."""
    return not is_opaque(tensor) and not is_sharded(tensor)


def has_values(tensor: Tensor) -> bool:
    """Returns whether there is anything to compute with: not on the meta device, nor in FakeTensorMode."""
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    return tensor.device.type != "meta" and not (fake and isinstance(tensor, fake.FakeTensor))


def is_away(tensor: Tensor) -> bool:
    """Returns whether its memory is away for a time, as with trainers that offload what they do not need."""
    return tensor.numel() > 0 and not is_opaque(tensor) and tensor.data_ptr() == 0


def is_readable(tensor: Tensor) -> bool:
    """Returns whether its values can be read."""
    return has_values(tensor) and (is_opaque(tensor) or not is_away(tensor))


def address_of(tensor: Tensor) -> int:
    """Returns where a tensor lies; 0 if it has no memory of its own."""
    return 0 if is_opaque(tensor) else local_of(tensor).data_ptr()


def addresses_of(tensors: Sequence[Tensor]) -> list[int]:
    """Returns where tensors lie; 0 for those without memory of their own."""
    return list(map(address_of, tensors))


def find_sharing(tensors: Sequence[Tensor]) -> dict[int, set[int]]:
    """Returns, for each tensor that shares memory with others, which these are."""
    places = sorted((*_span(tensor), index) for index, tensor in enumerate(tensors))
    sharing: dict[int, set[int]] = {}
    reaching: list[tuple[int, int]] = []  # those so far that end behind the present begin
    for begin, end, index in places:
        if begin == end:
            continue
        reaching = [(its_end, other) for its_end, other in reaching if its_end > begin]
        for _, other in reaching:
            sharing.setdefault(index, set()).add(other)
            sharing.setdefault(other, set()).add(index)
        reaching.append((end, index))
    return sharing


class Neighbours:
    """Parameters, and which of them share memory.

    Args:
        tensors: the parameters of all plans.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.sharing = find_sharing(tensors)
        self._tensors = tensors
        self._addresses = addresses_of(tensors)

    def share_otherwise(self) -> bool:
        """Returns whether others share memory than at first."""
        addresses = addresses_of(self._tensors)
        if addresses != self._addresses:
            if find_sharing(self._tensors) != self.sharing:
                return True
            self._addresses = addresses
        return False


def ranks_among(sharing: dict[int, set[int]]) -> dict[int, int]:
    """Returns, for each of these tensors, how many turns of others come before its own; equal ranks share nothing."""
    ranks: dict[int, int] = {}
    for index in sorted(sharing):
        ranks[index] = max((ranks[other] + 1 for other in sharing[index] if other < index), default=0)
    return ranks


def _span(tensor: Tensor) -> tuple[int, int]:
    """Returns the first address and the one behind the last; two equal numbers where there is none."""
    tensor = local_of(tensor)
    if not tensor.numel() or is_opaque(tensor) or not has_values(tensor) or tensor.layout != torch.strided:
        return 0, 0
    begin = tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (begin, begin + (last + 1) * tensor.element_size()) if begin else (0, 0)
