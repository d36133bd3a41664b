"""Networks and pictures that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Skip(nn.Module):
    """z + φ(z), or Q z + φ(z)."""

    def __init__(self, branch: nn.Module, connection: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.connection = branch, connection or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.connection(inputs) + self.branch(inputs)
        return output


def mixed_blocks() -> list[nn.Module]:
    """Convolution, two pre-activation residual blocks, groups and strides, pooling, a shared layer, a head."""

    def branch() -> nn.Module:
        return nn.Sequential(
            *(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False)),
            *(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)),
        )

    shared = nn.Linear(12, 12)
    return [
        nn.Conv2d(3, 8, 3, padding=1),
        Skip(branch()),
        Skip(branch()),
        nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, groups=4, bias=False), nn.BatchNorm2d(12), nn.GELU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), shared, nn.LayerNorm(12), nn.Tanh()),
        shared,
        nn.ReLU(inplace=True),
        nn.Linear(12, 5),
    ]


def picture(model: nn.Module) -> Any:
    """Bits, versions, gradients and flags of all tensors, the modules' flags, and the random generator."""
    tensors = model.state_dict(keep_vars=True)
    return (
        {name: (tensor.tolist(), tensor._version, tensor.requires_grad) for name, tensor in tensors.items()},
        [None if param.grad is None else param.grad.tolist() for param in model.parameters()],
        [(module.training, vars(module).get("track_running_stats")) for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        torch.get_rng_state().tolist(),
    )


def dense_jacobian(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """J as a matrix, by torch.autograd.functional."""
    found: Tensor = torch.autograd.functional.jacobian(function, point.detach())
    return found.reshape(-1, point.numel())


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest element wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max())
