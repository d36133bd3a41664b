"""The mean and covariance of what a linear layer or a convolution multiplies by its weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Of the patches that are laid out at a time for the covariance of a convolution's input.
_PATCH_ELEMENTS = 2**24


@dataclass(frozen=True)
class Moments:
    """Of inputs of a layer.

    Attributes:
        count: how many inputs; of a convolution every position of every example is one.
        mean: (group, element), where a linear layer has one group.
        scatter: (group, element, element), the sum of the squares about the mean, where that is wanted.
    """

    count: int
    mean: Tensor
    scatter: Tensor | None

    def __add__(self, other: Moments) -> Moments:
        """Returns the moments of the inputs of both."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        scatter = None
        if self.scatter is not None and other.scatter is not None:
            scatter = self.scatter + other.scatter + outer(shift) * (self.count * other.count / count)
        return Moments(count, self.mean + shift * (other.count / count), scatter)

    def of_all_processes(self) -> Moments:
        """Returns the moments of the inputs of all processes of torch.distributed's default group."""
        sums = torch.cat([self.mean.flatten() * self.count, self.mean.new_tensor([self.count])])
        dist.all_reduce(sums)
        mean = sums[:-1].view_as(self.mean) / sums[-1].clamp_min(1)
        scatter = self.scatter
        if scatter is not None:
            scatter = scatter + outer(self.mean - mean) * self.count
            dist.all_reduce(scatter)
        return Moments(round(float(sums[-1])), mean, scatter)


def outer(vectors: Tensor) -> Tensor:
    """Returns the outer product of each group's vector with itself."""
    return vectors.unsqueeze(2) * vectors.unsqueeze(1)


def groups_of(module: Any) -> tuple[int, int]:
    """Returns how many groups of inputs a layer has, and how many elements an input of one has."""
    return getattr(module, "groups", 1), module.weight[0].numel()


def empty_for(module: Any) -> Tensor:
    """Returns an empty tensor with the dtype and the device of a layer's statistics."""
    dtype = torch.promote_types(module.weight.dtype, torch.float32)
    return torch.empty(0, dtype=dtype, device=module.weight.device)


def as_batch(module: Any, inputs: Tensor) -> Tensor:
    """Returns inputs whose first dimension is that of the examples, also where there is just one."""
    dims = 2 + len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else 2
    return inputs if inputs.dim() >= dims else inputs.unsqueeze(0)


def _patches(module: Any, inputs: Tensor) -> Tensor:
    """Returns what a layer multiplies by its weight, as (group, example and position, element)."""
    groups, elements = groups_of(module)
    if not isinstance(module, CONVOLUTIONS):
        return inputs.reshape(1, -1, elements)
    spans = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    if isinstance(module.padding, str):
        sides = [(span // 2, span - span // 2) if module.padding == "same" else (0, 0) for span in spans]
    else:
        sides = [(size, size) for size in module.padding]
    pad = [size for pair in reversed(sides) for size in pair]
    inputs = F.pad(inputs, pad, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    inputs = inputs.reshape(len(inputs), groups, -1, *inputs.shape[2:])
    for dim, span in enumerate(spans):  # example, group, channel, positions, kernel in the end
        inputs = inputs.unfold(3 + dim, span + 1, module.stride[dim])[..., :: module.dilation[dim]]
    dims = len(spans)
    order = [1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims)]
    return inputs.permute(order).reshape(groups, -1, elements)


def find_moments(module: Any, inputs: Tensor, wants_scatter: bool) -> Moments:
    """Returns the moments of what a call of a layer multiplies by its weight."""
    inputs, dtype = as_batch(module, inputs), empty_for(module).dtype
    moments = no_moments(module, wants_scatter)
    if not inputs.numel():
        return moments
    if not wants_scatter:  # the mean of the patches is that of the mean image's
        patches = _patches(module, inputs.mean(0, keepdim=True, dtype=dtype))
        return Moments(len(inputs) * patches.shape[1], patches.mean(1), None)
    size = max(1, _PATCH_ELEMENTS // (inputs[0].numel() * math.prod(getattr(module, "kernel_size", ()))))
    for start in range(0, len(inputs), size):
        patches = _patches(module, inputs[start : start + size].to(dtype))
        mean = patches.mean(1)
        deviations = patches - mean.unsqueeze(1)
        moments += Moments(patches.shape[1], mean, deviations.mT @ deviations)
    return moments


def no_moments(module: Any, wants_scatter: bool) -> Moments:
    """Returns the moments of no input of a layer."""
    groups, elements = groups_of(module)
    scatter = empty_for(module).new_zeros(groups, elements, elements) if wants_scatter else None
    return Moments(0, empty_for(module).new_zeros(groups, elements), scatter)
