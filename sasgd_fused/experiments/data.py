"""Data sets: images and labels as tensors, split and standardised once, and the batches of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        train_images: float32, (images, channels, height + 2 margin, width + 2 margin); the margin is what a random
            crop may shift by.
        train_labels: int64, (images,).
        test_images: float32, (images, channels, height, width).
        test_labels: int64, (images,).
        classes: how many labels there are.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


def digits() -> Dataset:
    """Handwritten digits of scikit-learn, 1797 real images of 8 x 8 pixels: 898 for training, 899 for testing.

    The split follows the file, where the images of one writer stand together: most hands in the test half were not
    seen in training, which is harder than a random split.
    """
    images, labels = _load_digits()
    return _split(images, labels, 898)


def digits_tuning() -> Dataset:
    """The training half of `digits` alone, 598 images for training and 300 to choose hyperparameters by."""
    images, labels = _load_digits()
    return _split(images[:898], labels[:898], 598)


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits, "digits-tuning": digits_tuning}


def batches(data: Dataset, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields one epoch of shuffled, randomly shifted batches; images that fill no whole batch are left out."""
    height, width = data.test_images.shape[2:]
    order = torch.randperm(len(data.train_images), generator=generator)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        images = random_crops(data.train_images[chosen], height, width, generator)
        yield images, data.train_labels[chosen]


def random_crops(images: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Cuts a window of the given size out of every image, each at a place of its own."""
    windows = images.unfold(2, height, 1).unfold(3, width, 1)  # (images, channels, places, places, height, width)
    count, down, right = len(windows), windows.shape[2], windows.shape[3]
    top = torch.randint(down, (count,), generator=generator)
    left = torch.randint(right, (count,), generator=generator)
    return windows[torch.arange(count), :, top, left]


def _load_digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)


def _split(images: Tensor, labels: Tensor, train_count: int) -> Dataset:
    """Splits in the order given and standardises all pixels by mean and deviation of the training images."""
    train, test = images[:train_count], images[train_count:]
    mean, std = train.mean(), train.std()
    with_margin = pad(train, (1, 1, 1, 1))  # before standardising, as the background is 0
    return Dataset(
        (with_margin - mean) / std,
        labels[:train_count],
        (test - mean) / std,
        labels[train_count:],
        classes=10,
    )
