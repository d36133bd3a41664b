"""Networks in the manner of the paper's section 4: no biases, batch normalization without scale and shift, one head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


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


def vgg13(channels: int, classes: int) -> nn.Sequential:
    """The paper's VGG13 for images of 32 x 32 pixels, 9.4 million weights: ten 3 x 3 convolutions and the head."""
    layers: list[nn.Module] = []
    for width in (64, 128, 256, 512, 512):
        layers += [*_convolution(channels, width), *_convolution(width, width), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, classes, bias=False))


def deep_plain(channels: int, classes: int) -> nn.Sequential:
    """Seventeen hidden layers of 128 and the head for images of 8 x 8 pixels, 272,000 weights, without skips.

    Batch normalization lets such a network learn, but it makes gradients grow from layer to layer on their way back
    (Yang et al. 2019), so that one learning rate is far from right for all of them.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    inputs, width = 64 * channels, 128
    for _ in range(17):
        layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width, affine=False), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(width, classes, bias=False))


class PreActivation(nn.Module):
    """A residual block with normalization and ReLU before each convolution (He et al. 2016).

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution; where it or the channels change, the skip is a 1 x 1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(inputs, affine=False)
        self.skip = None
        if inputs != outputs or stride != 1:
            self.skip = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
        self.first = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs, affine=False)
        self.second = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (images, inputs, height, width) to (images, outputs, height / stride, width / stride)."""
        active = relu(self.first_norm(images))
        skipped = images if self.skip is None else self.skip(active)
        result: Tensor = skipped + self.second(relu(self.second_norm(self.first(active))))
        return result


def resnet(channels: int, classes: int) -> nn.Sequential:
    """Pre-activation ResNet of six blocks (32, 32, 64, 64, 128, 128), 694,000 weights, for digits and CIFAR."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=3, padding=1, bias=False),
        PreActivation(32, 32, 1),
        PreActivation(32, 32, 1),
        PreActivation(32, 64, 2),
        PreActivation(64, 64, 1),
        PreActivation(64, 128, 2),
        PreActivation(128, 128, 1),
        nn.BatchNorm2d(128, affine=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, classes, bias=False),
    )


MODELS: dict[str, Callable[[int, int], nn.Sequential]] = {
    "vgg7": vgg7,
    "vgg13": vgg13,
    "deep-plain": deep_plain,
    "resnet": resnet,
}


def initialise(model: nn.Module, seed: int) -> None:
    """Draws all weights from the normal distribution of He et al. (2015); linear layers without the gain of ReLU."""
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
