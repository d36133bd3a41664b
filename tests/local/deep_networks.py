"""Networks on which the paper's chain of blocks does not tell the backward factors, and what goes into them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from sasgd_fused.local.shares import OutputShares


class Residual(nn.Module):
    """A pre-activation block, x + W φ(BN(x)), or with two layers."""

    def __init__(self, width: int, layers: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, affine=False) for _ in range(layers))
        self.linears = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.activation = activation

    def forward(self, inputs: Tensor) -> Tensor:
        branch = inputs
        for norm, linear in zip(self.norms, self.linears, strict=True):
            branch = linear(self.activation(norm(branch)))
        return inputs + branch


class Concatenating(nn.Module):
    """cat(x, W φ(BN(x)))."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs, affine=False)
        self.linear = nn.Linear(inputs, growth, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, self.linear(relu(self.norm(inputs)))], 1)


class InvertedResidual(nn.Module):
    """As in MobileNetV2: wide inside, with a depthwise convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        self.branch = nn.Sequential(
            *(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.has_skip = inputs == outputs and stride == 1

    def forward(self, inputs: Tensor) -> Tensor:
        branch: Tensor = self.branch(inputs)
        return inputs + branch if self.has_skip else branch


def residual_mlp(blocks: int, width: int, layers: int, activation: Callable[[Tensor], Tensor] = relu) -> nn.Module:
    body = [Residual(width, layers, activation) for _ in range(blocks)]
    return initialised(nn.Linear(64, width, bias=False), *body, *mlp_head(width))


def concatenating_mlp(layers: int = 10, growth: int = 16) -> nn.Module:
    body = [Concatenating(64 + place * growth, growth) for place in range(layers)]
    return initialised(*body, *mlp_head(64 + layers * growth))


def plain_mlp(widths: Sequence[int]) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((64, *widths), widths, strict=False):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, affine=False), nn.ReLU()]
    return initialised(*layers, nn.Linear(widths[-1], 10))


def depthwise() -> nn.Module:
    first = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
    sizes = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1)]
    return initialised(*first, *(InvertedResidual(*size) for size in sizes), *image_head(32))


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 1
    for place, outputs in enumerate((16, 16, 32, 32, 64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place % 2 else []
        inputs = outputs
    return initialised(*layers, *image_head(64))


def mlp_head(width: int) -> tuple[nn.Module, ...]:
    return nn.BatchNorm1d(width, affine=False), nn.ReLU(), nn.Linear(width, 10, bias=False)


def image_head(width: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)


def initialised(*modules: nn.Module) -> nn.Sequential:
    """Makes a network of the modules, with weights by He et al. (2015)."""
    model, generator = nn.Sequential(*modules), torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
    return model


def vectors(count: int = 256) -> Tensor:
    """Vectors of 64 elements, (count, 64)."""
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(1))


def images(count: int = 96) -> Tensor:
    """Smooth images, (count, 1, 16, 16)."""
    coarse = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return interpolate(coarse, size=16, mode="bilinear")


def spread(found: OutputShares, wanted: Sequence[float]) -> float:
    """2 to the root mean square of log2(found / wanted) over the hidden layers, less its mean: 1 if all is right."""
    logs = [math.log2(row.share / share) for row, share in zip(found, wanted, strict=True) if not row.is_head]
    mean = sum(logs) / len(logs)
    return float(2 ** math.sqrt(sum((log - mean) ** 2 for log in logs) / len(logs)))
