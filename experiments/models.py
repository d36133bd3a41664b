"""Networks in the manner of the paper's section 4: no biases, batch normalization without scale and shift, one head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


def vgg7(channels: int, classes: int, width: float = 1) -> nn.Sequential:
    """Makes a VGG with three stages of two 3 x 3 convolutions for images of 8 x 8 pixels, with 288,000 weights."""
    outputs = [round(width * outputs) for outputs in (32, 64, 128)]
    *layers, _ = _stages(channels, outputs)
    head = nn.Linear(outputs[-1], classes, bias=False)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def vgg13(channels: int, classes: int, width: float = 1) -> nn.Sequential:
    """Makes the paper's VGG13 for images of 32 x 32 pixels, ten 3 x 3 convolutions with 9.4 million weights."""
    outputs = [round(width * outputs) for outputs in (64, 128, 256, 512, 512)]
    return nn.Sequential(*_stages(channels, outputs), nn.Flatten(), nn.Linear(outputs[-1], classes, bias=False))


def _stages(channels: int, outputs: Sequence[int]) -> list[nn.Module]:
    """Makes stages of two convolutions, each followed by pooling."""
    layers: list[nn.Module] = []
    for before, after in zip((channels, *outputs), outputs, strict=False):
        for inputs in (before, after):
            convolution = nn.Conv2d(inputs, after, kernel_size=3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after, affine=False), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return layers


def deep_plain(channels: int, classes: int, width: float = 1) -> nn.Sequential:
    """Makes seventeen hidden layers of 128 and the head for images of 8 x 8 pixels, 272,000 weights, without skips.

    Batch normalization lets such a network learn, but it makes gradients grow from layer to layer on their way back
    (Yang et al. 2019), so that one learning rate is far from right for all of them.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    inputs, outputs = 64 * channels, round(128 * width)
    for _ in range(17):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, affine=False), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(outputs, classes, bias=False))


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
        active = relu(self.first_norm(images))
        skipped = images if self.skip is None else self.skip(active)
        result: Tensor = skipped + self.second(relu(self.second_norm(self.first(active))))
        return result


def resnet(channels: int, classes: int, width: float = 1) -> nn.Sequential:
    """Makes a pre-activation ResNet of six blocks (16, 16, 32, 32, 64, 64), 174,000 weights, for digits and CIFAR."""
    first, second, third = (round(width * outputs) for outputs in (16, 32, 64))
    return nn.Sequential(
        nn.Conv2d(channels, first, kernel_size=3, padding=1, bias=False),
        PreActivation(first, first, 1),
        PreActivation(first, first, 1),
        PreActivation(first, second, 2),
        PreActivation(second, second, 1),
        PreActivation(second, third, 2),
        PreActivation(third, third, 1),
        nn.BatchNorm2d(third, affine=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(third, classes, bias=False),
    )


# Each makes a network from the channels of its images, the number of classes and the factor of its hidden widths.
MODELS: dict[str, Callable[..., nn.Sequential]] = {
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


def scale_badly(model: nn.Module, seed: int, decades: float) -> None:
    """Multiplies each hidden layer by a factor of its own, from 10^-decades to 10^decades."""
    generator = torch.Generator().manual_seed(2**31 + seed)  # not the draws of `initialise`; 32 bits of it count
    *hidden, _ = list(model.parameters())
    with torch.no_grad():
        for weight in hidden:
            weight.mul_(10 ** (decades * (2 * torch.rand((), generator=generator).item() - 1)))
