"""Memory layouts: which tensors a kernel may walk through in the order of memory."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Returns whether the elements fill one stretch of memory without gaps or overlap, in any order of dimensions."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def has_layout_of(tensor: Tensor, like: Tensor) -> bool:
    """Returns whether a tensor lies in memory as a dense copy of another does; dimensions of size 1 do not count."""
    dense = torch.empty_like(like, device="meta")
    return tensor.shape == dense.shape and all(
        size == 1 or s == t for size, s, t in zip(dense.shape, tensor.stride(), dense.stride(), strict=True)
    )


@torch.no_grad()
def in_layout_of(tensor: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a copy of the tensor that lies in memory as a dense copy of another does."""
    return torch.empty_like(like, dtype=dtype).copy_(tensor)
