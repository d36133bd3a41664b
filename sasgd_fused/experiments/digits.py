"""Handwritten digits of scikit-learn, 1797 real images of 8 x 8 pixels, as they are and made harder.

The split follows the file, where the images of one writer stand together: most hands in the test half were not seen in
training, which is harder than a random split.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import pad

from sasgd_fused.experiments.augment import random_crops
from sasgd_fused.experiments.dataset import Dataset

SIDE = 8  # pixels
TRAINING = 898  # of 1797 images
TUNING = 598  # of these

# What makes the noisy digits hard. Pixels are from 0 to 16.
SHIFT = 1
PIXEL_NOISE = 5.0
WRONG_LABELS = 0.2
NOISE_SEED = 0


def digits() -> Dataset:
    """The digits: 898 for training, 899 for testing."""
    images, labels = _load_digits()
    return _split(images, labels, labels, TRAINING)


def digits_tuning() -> Dataset:
    """The training half of `digits` alone, 598 images for training and 300 to choose hyperparameters by."""
    images, labels = _load_digits()
    return _split(images[:TRAINING], labels[:TRAINING], labels[:TRAINING], TUNING)


def noisy_digits() -> Dataset:
    """The digits, made harder, split as `digits`.

    Every image is shifted by up to one pixel each way and has normal noise of deviation 5 added to its pixels, which
    go from 0 to 16; one training label in five is drawn anew from the ten digits. What is tested on has its true
    labels. The noise belongs to the data set: it is the same in every run and every epoch.
    """
    images, labels, noisy = _make_noisy_digits()
    return _split(images, noisy, labels, TRAINING)


def noisy_digits_tuning() -> Dataset:
    """The training half of `noisy_digits` alone, split as `digits_tuning`; its 300 images have their true labels."""
    images, labels, noisy = _make_noisy_digits()
    return _split(images[:TRAINING], noisy[:TRAINING], labels[:TRAINING], TUNING)


def _load_digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, SIDE, SIDE), torch.tensor(labels)


def _make_noisy_digits() -> tuple[Tensor, Tensor, Tensor]:
    """Returns images, true labels and noisy labels."""
    images, labels = _load_digits()
    generator = torch.Generator().manual_seed(NOISE_SEED)
    images = random_crops(pad(images, (SHIFT,) * 4), SIDE, SIDE, generator)
    images = images + PIXEL_NOISE * torch.randn(images.shape, generator=generator)
    wrong = torch.rand(len(labels), generator=generator) < WRONG_LABELS
    drawn = torch.randint(10, (len(labels),), generator=generator)
    return images, labels, torch.where(wrong, drawn, labels)


def _shift_by_a_pixel(images: Tensor, generator: torch.Generator) -> Tensor:
    return random_crops(images, SIDE, SIDE, generator)


def _split(images: Tensor, train_labels: Tensor, test_labels: Tensor, train_count: int) -> Dataset:
    """Splits in the order given and standardises all pixels by mean and deviation of the training images."""
    train, test = images[:train_count], images[train_count:]
    mean, std = train.mean(), train.std()
    with_margin = pad(train, (1, 1, 1, 1))  # before standardising, as the background is 0
    return Dataset(
        (with_margin - mean) / std,
        train_labels[:train_count],
        (test - mean) / std,
        test_labels[train_count:],
        classes=10,
        augment=_shift_by_a_pixel,
    )
