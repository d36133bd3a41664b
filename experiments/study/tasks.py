"""The study's tasks: labels of a random teacher, noisy digits, real MNIST, CIFAR where its archive is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from experiments.data import DATASETS, Dataset
from experiments.mnist import read_carried

SEED = 0  # of what belongs to a task: the teacher, noise
# The teacher
INPUTS, HIDDEN = 32, 64
TRAINING, TESTING = 4000, 2000
TEACHER_WRONG_LABELS = 0.1
# MNIST, 5,000 images of the 70,000, at 14 x 14 pixels
PIXEL_NOISE = 0.2  # deviation, of pixels from 0 to 1
MNIST_WRONG_LABELS = 0.1


@cache
def load_task(name: str, *, tuning: bool, classes: int | None = None) -> Dataset:
    """Loads the images to tune by, or those to evaluate on. Nothing is tuned by an image that evaluation tests on.

    Args:
        name: "teacher", "noisy-digits", "mnist14" (14 x 14 pixels, noisy, 2,500 to train on), "mnist5k" (as they are,
            4,000 to train on), "cifar10" or "cifar100".
        tuning: which of both.
        classes: how many labels the teacher gives, 10 by default. The other tasks have as many as they have.

    Raises:
        MissingDataError: MNIST's images are not installed.
        ArchiveError: CIFAR's archive is missing or damaged.
        ValueError: there is no such task, or it has another number of classes.
    """
    if name == "teacher":
        return _teacher(tuning, 10 if classes is None else classes)
    if name in _LOADERS:
        data = _LOADERS[name](tuning)
    elif name in ("cifar10", "cifar100"):
        data = DATASETS[f"{name}-tuning" if tuning else name]()
    else:
        raise ValueError(f"name: got {name!r}, want teacher, {', '.join(_LOADERS)}, cifar10 or cifar100")
    if classes not in (None, data.classes):
        raise ValueError(f"classes: got {classes} with {name}, want {data.classes}")
    return data


def make_teacher(classes: int) -> Callable[[Tensor], Tensor]:
    """Makes a random network of two hidden layers, which gives labels to inputs, all about as often."""
    generator = torch.Generator().manual_seed(SEED)
    layers = [torch.randn(size, generator=generator) for size in ((INPUTS, HIDDEN), (HIDDEN, HIDDEN))]
    head = torch.randn(HIDDEN, classes, generator=generator)

    def outputs(inputs: Tensor) -> Tensor:
        for layer in layers:
            inputs = torch.tanh(inputs @ layer * len(layer) ** -0.5)
        return inputs @ head

    std, mean = torch.std_mean(outputs(torch.randn(TRAINING, INPUTS, generator=generator)), dim=0)
    return lambda inputs: ((outputs(inputs) - mean) / std).argmax(1)


def _teacher(tuning: bool, classes: int) -> Dataset:
    """Draws normal inputs, which a teacher labels; one training label in ten is random.

    What is tuned by and what is evaluated on are labelled by the same teacher and share no input.
    """
    generator = torch.Generator().manual_seed(SEED + 1)
    inputs = torch.randn(2 * (TRAINING + TESTING), INPUTS, generator=generator)
    labels = make_teacher(classes)(inputs)
    noisy_labels = _with_wrong(labels, TEACHER_WRONG_LABELS, classes, generator)
    start = TRAINING + TESTING if tuning else 0
    train, test = slice(start, start + TRAINING), slice(start + TRAINING, start + TRAINING + TESTING)
    images = inputs.reshape(-1, 1, 1, INPUTS)
    return Dataset((images[train], noisy_labels[train]), (images[test], labels[test]), classes)


def _noisy_digits(tuning: bool) -> Dataset:
    """Takes the noisy digits that the comparisons train on; of those that they test on, the first half is tuned by."""
    data = DATASETS["noisy-digits"]()
    images, labels = data.test
    middle = len(images) // 2
    part = slice(middle) if tuning else slice(middle, None)
    return replace(data, test=(images[part], labels[part]))


def _mnist5k(tuning: bool) -> Dataset:
    """Takes 4,000 images to train on and 1,000 to test on; for tuning 3,000 and 1,000 of the 4,000."""
    images, labels = read_carried()
    end = 3000 if tuning else 4000
    return _standardised(images, labels, labels, slice(end), slice(end, end + 1000))


def _mnist14(tuning: bool) -> Dataset:
    """Makes MNIST smaller and harder: 14 x 14 pixels with normal noise; one training label in ten is random.

    The same 2,500 images are trained on; 1,000 others are tuned by, 1,500 others evaluated on.
    """
    images, labels = read_carried()
    generator = torch.Generator().manual_seed(SEED)
    images = avg_pool2d(images, 2)
    images = images + PIXEL_NOISE * torch.randn(images.shape, generator=generator)
    noisy_labels = _with_wrong(labels, MNIST_WRONG_LABELS, 10, generator)
    return _standardised(images, labels, noisy_labels, slice(2500), slice(2500, 3500) if tuning else slice(3500, 5000))


def _with_wrong(labels: Tensor, share: float, classes: int, generator: torch.Generator) -> Tensor:
    """Draws a share of the labels anew from all classes."""
    wrong = torch.rand(len(labels), generator=generator) < share
    return torch.where(wrong, torch.randint(classes, (len(labels),), generator=generator), labels)


def _standardised(images: Tensor, labels: Tensor, train_labels: Tensor, train: slice, test: slice) -> Dataset:
    std, mean = torch.std_mean(images[train])
    images = (images - mean) / std
    return Dataset((images[train], train_labels[train]), (images[test], labels[test]), classes=10)


_LOADERS: dict[str, Callable[[bool], Dataset]] = {
    "noisy-digits": _noisy_digits,
    "mnist14": _mnist14,
    "mnist5k": _mnist5k,
}
