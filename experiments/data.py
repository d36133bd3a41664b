"""The data sets by name, in memory; those that end in `-tuning` share no image with what the others test on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from experiments import cifar

ROOT = Path("data")
# The digits. The split follows the file, where the images of one writer stand together: most hands in the test half
# were not seen in training, which is harder than a random split.
SIDE = 8  # pixels
TRAINING = 898  # of 1797 images
TUNING = 598  # of these
# What makes the noisy digits hard. Pixels are from 0 to 16.
PIXEL_NOISE = 5.0
WRONG_LABELS = 0.2
NOISE_SEED = 0
# CIFAR. The paper turns images, but does not say how far.
DEGREES = 15.0
# The last training images are held out, and watched by a schedule; the paper's validation set is not described.
HELD_OUT = 5000

Part = tuple[Tensor, Tensor]  # images and their labels
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Dataset:
    """A data set on one device: standardised images, (images, channels, height, width), with their labels.

    Attributes:
        train: what is trained on; with a margin where `augment` cuts a window out.
        test: what is tested on.
        classes: how many labels there are.
        augment: changes a batch of training images at random into what is trained on; None to leave it as it is.
        validation: what is neither trained nor tested on, for schedules that watch the error; None where there is none.
    """

    train: Part
    test: Part
    classes: int
    augment: Augment | None = None
    validation: Part | None = None

    def to(self, device: torch.device) -> Dataset:
        """Returns the data set on a device, so that no batch has to be brought there."""
        train, test, validation = (
            part and (part[0].to(device), part[1].to(device)) for part in (self.train, self.test, self.validation)
        )
        assert train and test
        return Dataset(train, test, self.classes, self.augment, validation)


def batches(data: Dataset, batch_size: int, generator: torch.Generator) -> Iterator[Part]:
    """Yields one epoch of shuffled, augmented batches; images that fill no whole batch are left out."""
    images, labels = data.train
    order = torch.randperm(len(images), generator=generator, device=generator.device)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        batch = images[chosen]
        yield data.augment(batch, generator) if data.augment else batch, labels[chosen]


def random_crops(images: Tensor, generator: torch.Generator, side: int = SIDE) -> Tensor:
    """Cuts a square window out of every image, each at a place of its own."""
    windows = images.unfold(2, side, 1).unfold(3, side, 1)  # (images, channels, places, places, height, width)
    count, down, right = len(windows), windows.shape[2], windows.shape[3]
    top = torch.randint(down, (count,), generator=generator, device=generator.device)
    left = torch.randint(right, (count,), generator=generator, device=generator.device)
    return windows[torch.arange(count, device=images.device), :, top, left]


def random_flips_and_rotations(images: Tensor, generator: torch.Generator, degrees: float = DEGREES) -> Tensor:
    """Mirrors every other image by chance and turns each by an angle of its own, uniform up to `degrees` either way."""
    flips, angles = torch.rand(2, len(images), generator=generator, device=generator.device)
    return flip_and_rotate(images, flips < 0.5, (2 * angles - 1) * math.radians(degrees))


def flip_and_rotate(images: Tensor, flips: Tensor, angles: Tensor) -> Tensor:
    """Mirrors images left to right, then turns them about their centre, in one bilinear interpolation.

    What comes in from outside of an image is 0, the mean of standardised pixels.

    Args:
        images: (images, channels, side, side).
        flips: bool, (images,), which to mirror.
        angles: (images,), radians, counterclockwise.
    """
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    side = 1 - 2 * flips.to(angles.dtype)
    # From where in the image each pixel of the result is taken: turned back, then mirrored.
    rows = (torch.stack((side * cosine, -side * sine, zero), 1), torch.stack((sine, cosine, zero), 1))
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def digits(root: Path = ROOT, *, tuning: bool = False, noisy: bool = False) -> Dataset:
    """Loads handwritten digits of scikit-learn, 1797 real images of 8 x 8 pixels: 898 to train on, 899 to test on.

    The noisy ones are shifted by up to one pixel each way and have normal noise of deviation 5 added to their pixels,
    which go from 0 to 16; one training label in five is drawn anew from the ten digits. What is tested on has its true
    labels. The noise belongs to the data set: it is the same in every run and every epoch.

    Args:
        root: not needed here.
        tuning: the training half alone, 598 images to train on and 300 to choose hyperparameters by.
        noisy: with noise.
    """
    pixels, targets = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, SIDE, SIDE), torch.tensor(targets)
    train_labels = labels
    if noisy:
        generator = torch.Generator().manual_seed(NOISE_SEED)
        images = random_crops(pad(images, (1, 1, 1, 1)), generator)
        images = images + PIXEL_NOISE * torch.randn(images.shape, generator=generator)
        wrong = torch.rand(len(labels), generator=generator) < WRONG_LABELS
        train_labels = torch.where(wrong, torch.randint(10, (len(labels),), generator=generator), labels)
    start, end = (TUNING, TRAINING) if tuning else (TRAINING, len(images))
    mean, std = images[:start].mean(), images[:start].std()
    with_margin = pad(images[:start], (1, 1, 1, 1))  # before standardising, as the background is 0
    train = (with_margin - mean) / std, train_labels[:start]
    return Dataset(train, ((images[start:end] - mean) / std, labels[start:end]), classes=10, augment=random_crops)


def load_cifar(archive: cifar.Archive, root: Path, *, tuning: bool = False, held_out: int = HELD_OUT) -> Dataset:
    """Loads CIFAR, 32 x 32 pixels in colour: 45,000 images to train on, 5,000 to watch, 10,000 to test on.

    Args:
        archive: which one.
        root: the folder that it is in.
        tuning: the training images alone, 40,000 to train on, 5,000 to watch, 5,000 to choose hyperparameters by.
        held_out: how many images are to watch, and to choose by.

    Raises:
        ArchiveError: it is missing or damaged.
    """
    images, labels, testing = cifar.read(archive, root)
    end = len(images) - testing if tuning else len(images)
    testing = held_out if tuning else testing
    first, second = end - testing - held_out, end - testing
    train_images = images[:first].float()
    std, mean = torch.std_mean(train_images, dim=(0, 2, 3), keepdim=True)  # of each colour
    test, validation = (
        ((images[part] - mean) / std, labels[part]) for part in (slice(second, end), slice(first, second))
    )
    train = train_images.sub_(mean).div_(std), labels[:first]  # in place: these are 600 MB
    return Dataset(train, test, archive.classes, random_flips_and_rotations, validation)


_LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "noisy-digits": partial(digits, noisy=True),
    "cifar10": partial(load_cifar, cifar.CIFAR10),
    "cifar100": partial(load_cifar, cifar.CIFAR100),
}
# Each may be called with the folder of the archives.
DATASETS: dict[str, Callable[..., Dataset]] = {
    name + suffix: partial(load, tuning=bool(suffix)) for name, load in _LOADERS.items() for suffix in ("", "-tuning")
}
