"""A data set in memory, and the batches of an epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Images with their labels.

    Attributes:
        images: (images, channels, height, width).
        labels: int64, (images,).
    """

    images: Tensor
    labels: Tensor

    def split(self, count: int) -> tuple[Part, Part]:
        """The first `count` images, or all but so many where it is negative, and the others."""
        return Part(self.images[:count], self.labels[:count]), Part(self.images[count:], self.labels[count:])


def unchanged(images: Tensor, generator: torch.Generator) -> Tensor:
    """No augmentation."""
    return images


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, on one device.

    Attributes:
        train_images: float32, (images, channels, height, width); with a margin where `augment` cuts a window out.
        train_labels: int64, (images,).
        test_images: float32, (images, channels, height, width).
        test_labels: int64, (images,).
        classes: how many labels there are.
        augment: changes a batch of training images at random into what is trained on.
        validation: standardised images that are neither trained nor tested on, for schedules that watch the error;
            None where there are none.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int
    augment: Callable[[Tensor, torch.Generator], Tensor] = unchanged
    validation: Part | None = None

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.train_images.device

    def to(self, device: torch.device) -> Dataset:
        """The data set on a device, so that no batch has to be brought there."""
        watched = self.validation
        return dataclasses.replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
            validation=watched and Part(watched.images.to(device), watched.labels.to(device)),
        )


def batches(data: Dataset, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields one epoch of shuffled, augmented batches; images that fill no whole batch are left out.

    Args:
        data: what to draw from.
        batch_size: images in a batch.
        generator: draws order and augmentation, on the device of the data.
    """
    order = torch.randperm(len(data.train_images), generator=generator, device=generator.device)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        yield data.augment(data.train_images[chosen], generator), data.train_labels[chosen]
