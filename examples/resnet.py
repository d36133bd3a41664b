"""ResNets (He et al. 2016) with the stride in the 3 x 3 convolution; the parameters are named as torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.functional import relu


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, and a linear head.

    Args:
        block: the kind of its blocks.
        depths: how many blocks each stage has.
        classes: outputs of the head.
    """

    def __init__(self, block: Block, depths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.conv1 = _convolution(3, 64, size=7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Takes (images, 3, height, width), gives (images, classes)."""
        x = self.maxpool(relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, of ResNet-18 and ResNet-34."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, width, size=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, size=3)
        self.bn2 = _last_norm(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Adds what the convolutions make of the input to it."""
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1, of ResNet-50 and deeper ones."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _convolution(inputs, width, size=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, size=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, outputs, size=1)
        self.bn3 = _last_norm(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Adds what the convolutions make of the input to it."""
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return relu(y + self.downsample(x))


Block: TypeAlias = "type[BasicBlock] | type[Bottleneck]"

# What makes a network for a number of classes.
ARCHITECTURES: dict[str, Callable[[int], ResNet]] = {
    "resnet18": lambda classes: ResNet(BasicBlock, (2, 2, 2, 2), classes),
    "resnet50": lambda classes: ResNet(Bottleneck, (3, 4, 6, 3), classes),
}


def _stage(block: Block, inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    outputs = width * block.expansion
    return nn.Sequential(block(inputs, width, stride), *(block(outputs, width, stride=1) for _ in range(depth - 1)))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _last_norm(width: int) -> nn.BatchNorm2d:
    """Starts at zero, and so each block as the identity, which large batches need (Goyal et al. 2017)."""
    norm = nn.BatchNorm2d(width)
    nn.init.zeros_(norm.weight)
    return norm


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(_convolution(inputs, outputs, size=1, stride=stride), nn.BatchNorm2d(outputs))
