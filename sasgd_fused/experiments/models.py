"""Networks as in section 4 of the paper: no biases, batch normalization without scale and shift, one linear head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def vgg7(channels: int, classes: int) -> nn.Sequential:
    """VGG with three stages of two 3 x 3 convolutions for images of 8 x 8 pixels, 288,000 weights and the head."""
    return nn.Sequential(
        *_convolution(channels, 32),
        *_convolution(32, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        *_convolution(64, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 128),
        *_convolution(128, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, classes, bias=False),
    )


MODELS: dict[str, Callable[[int, int], nn.Sequential]] = {"vgg7": vgg7}


def initialise(model: nn.Module, seed: int) -> None:
    """Draws all weights from the normal distribution of He et al. (2015); the head without the gain of ReLU."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs, affine=False),
        nn.ReLU(),
    ]
