"""The study's networks by name, each of any width and depth.

Those whose name begins with "affine-" have batch normalizations with scale and shift, as networks in use have them;
the others are without, in the manner of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from experiments.models import PreActivation, initialise

Shape = tuple[int, int, int]  # of an image: channels, height, width
Builder = Callable[[Shape, int, int, int], nn.Module]  # image, classes, width, depth
Init = Literal["plain", "times 10", "times 0.1", "random"]

HEADS = 4
PATCH, STRIDE = 4, 3  # pixels


def _perceptron(
    shape: Shape, classes: int, widths: Sequence[int], norm: Callable[[int], nn.Module] | None
) -> nn.Sequential:
    """Makes an MLP; where there is no normalization it has biases."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = math.prod(shape)
    for outputs in widths:
        layers += [nn.Linear(inputs, outputs, bias=norm is None), *([norm(outputs)] if norm else []), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, classes, bias=norm is None))


def _same(width: int, depth: int) -> list[int]:
    return [width] * depth


def _narrowing(width: int, depth: int) -> list[int]:
    """Returns widths that fall from four times to a quarter of the width, each by the same factor."""
    return [round(width * 4 ** (1 - 2 * place / (depth - 1))) for place in range(depth)]


def _widening(width: int, depth: int) -> list[int]:
    return _narrowing(width, depth)[::-1]


def _mlp(
    widths: Callable[[int, int], list[int]],
    norm: Callable[[int], nn.Module] | None,
    shape: Shape,
    classes: int,
    width: int,
    depth: int,
) -> nn.Sequential:
    return _perceptron(shape, classes, widths(width, depth), norm)


def _stages(width: int, depth: int) -> list[tuple[int, int]]:
    """Returns stage and channels of each of `depth` layers; three stages, each twice as wide as the one before."""
    return [(3 * place // depth, width * 2 ** (3 * place // depth)) for place in range(depth)]


def vgg(shape: Shape, classes: int, width: int, depth: int) -> nn.Sequential:
    """Makes a VGG of `depth` 3 x 3 convolutions, each stage followed by pooling."""
    layers: list[nn.Module] = []
    inputs, stages = shape[0], _stages(width, depth)
    for place, (stage, outputs) in enumerate(stages):
        convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs, affine=False), nn.ReLU()]
        if place + 1 == depth or stages[place + 1][0] != stage:
            layers.append(nn.MaxPool2d(2))
        inputs = outputs
    return nn.Sequential(*layers, *_pooled_head(inputs, classes))


def resnet(shape: Shape, classes: int, width: int, depth: int) -> nn.Sequential:
    """Makes a pre-activation ResNet of `depth` blocks, on images that the first convolution makes half as large."""
    layers: list[nn.Module] = [nn.Conv2d(shape[0], width, kernel_size=3, stride=2, padding=1, bias=False)]
    inputs = width
    for _, outputs in _stages(width, depth):
        layers.append(PreActivation(inputs, outputs, 1 if inputs == outputs else 2))
        inputs = outputs
    return nn.Sequential(*layers, nn.BatchNorm2d(inputs, affine=False), nn.ReLU(), *_pooled_head(inputs, classes))


def depthwise(shape: Shape, classes: int, width: int, depth: int) -> nn.Sequential:
    """Makes a network of `depth` depthwise-separable convolutions, on images that a whole one makes half as large."""
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width, affine=False),
        nn.ReLU(),
    ]
    inputs = width
    for _, outputs in _stages(width, depth):
        stride = 1 if inputs == outputs else 2
        layers += [
            nn.Conv2d(inputs, inputs, kernel_size=3, stride=stride, padding=1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs, affine=False),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, kernel_size=1, bias=False),
            nn.BatchNorm2d(outputs, affine=False),
            nn.ReLU(),
        ]
        inputs = outputs
    return nn.Sequential(*layers, *_pooled_head(inputs, classes))


def _pooled_head(inputs: int, classes: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes, bias=False)


class VisionTransformer(nn.Module):
    """A small vision transformer: overlapping patches, fixed positions, pre-normalized layers, a mean over tokens.

    Args:
        shape: of an image.
        classes: outputs.
        width: of a token; a multiple of four heads.
        depth: layers.
    """

    positions: Tensor

    def __init__(self, shape: Shape, classes: int, width: int, depth: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.patches = nn.Conv2d(channels, width, kernel_size=PATCH, stride=STRIDE)
        down, right = ((side - PATCH) // STRIDE + 1 for side in (height, breadth))
        self.register_buffer("positions", _waves(down * right, width))
        layer = partial(
            nn.TransformerEncoderLayer, dim_feedforward=2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.Sequential(*(layer(width, HEADS) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT + self.positions
        result: Tensor = self.head(self.norm(self.layers(tokens)).mean(1))
        return result


def _waves(count: int, width: int) -> Tensor:
    """Returns sines and cosines of each place in a sequence, (count, width), as Vaswani et al. 2017 have them."""
    rates = 10000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(count)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), 1)


def _affine(build: Builder, shape: Shape, classes: int, width: int, depth: int) -> nn.Module:
    """Makes a network and gives its batch normalizations scale and shift."""
    model = build(shape, classes, width, depth)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.affine = True
            module.weight = nn.Parameter(torch.ones(module.num_features))
            module.bias = nn.Parameter(torch.zeros(module.num_features))
    return model


_without_affine = partial(nn.BatchNorm1d, affine=False)
_BATCH_NORMALIZED: dict[str, Builder] = {
    "mlp": partial(_mlp, _same, _without_affine),
    "narrowing-mlp": partial(_mlp, _narrowing, _without_affine),
    "widening-mlp": partial(_mlp, _widening, _without_affine),
    "vgg": vgg,
    "resnet": resnet,
    "depthwise": depthwise,
}
NETWORKS: dict[str, Builder] = {
    **_BATCH_NORMALIZED,
    **{f"affine-{name}": partial(_affine, build) for name, build in _BATCH_NORMALIZED.items()},
    "layernorm-mlp": partial(_mlp, _same, nn.LayerNorm),
    "unnormalized-mlp": partial(_mlp, _same, None),
    "transformer": VisionTransformer,
}


def make_network(name: str, shape: Shape, classes: int, width: int, depth: int, init: Init, seed: int) -> nn.Module:
    """Makes a network with weights that follow from the seed alone.

    Args:
        name: key in `NETWORKS`.
        shape: of an image.
        classes: outputs.
        width: of the hidden layers; of the first stage, where there are stages.
        depth: hidden layers or blocks.
        init: what the hidden layers' weights are multiplied by: nothing, 10, 0.1, or a factor of its own for each,
            from 0.1 to 10.
        seed: of the draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name](shape, classes, width, depth)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(2**31 + seed)  # not the draws of `initialise`
    *hidden, _ = [param for param in model.parameters() if param.dim() >= 2]
    with torch.no_grad():
        for weight in hidden:
            power = 2 * torch.rand((), generator=generator).item() - 1
            weight.mul_({"plain": 1.0, "times 10": 10.0, "times 0.1": 0.1, "random": 10**power}[init])
    return model
