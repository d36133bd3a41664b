"""Images in folders, one for each class; how one is cut out depends on seed, epoch and image, not on who reads it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")

# Left, top, right, bottom
Box = tuple[float, float, float, float]


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """The images of train/ or val/, as bytes of shape (size, size, 3), with the numbers of their classes.

    Args:
        folder: holds a folder for each class.
        classes: their names, in the order of their numbers.
        size: pixels that an image is wide and high in the end.

    Raises:
        ValueError: a class has no folder or no images, or there is a folder of another class.
    """

    def __init__(self, folder: Path, classes: list[str], size: int) -> None:
        if unknown := sorted(set(list_classes(folder)) - set(classes)):
            raise ValueError(f"{folder / unknown[0]}: a class that is not in train/, want the same classes in both")
        self.size = size
        self.samples = [(path, label) for label, name in enumerate(classes) for path in _list_images(folder / name)]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The whole image and its class.

        Raises:
            ValueError: the file is damaged, or no image.
        """
        path, label = self.samples[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB"), label
        except Exception as error:  # each format has its own
            raise ValueError(f"{path}: cannot be read as an image: {error}") from error

    def cut(self, image: Image.Image, box: Box) -> Image.Image:
        """Resizes what a box has of an image."""
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)


class TrainingImages(ImageFolder):
    """Random cutouts, half of them mirrored."""

    def __getitem__(self, place: tuple[int, int, int]) -> tuple[Tensor, int]:
        """An image by seed, epoch and index."""
        seed, epoch, index = place
        draw = random.Random(f"{seed} {epoch} {index}")  # hashed, so that neighbours are not alike
        image, label = self.read(index)
        image = self.cut(image, random_box(image.width, image.height, draw))
        if draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _to_tensor(image), label


class ValidationImages(ImageFolder):
    """The middle of each image."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image by its index."""
        image, label = self.read(index)
        return _to_tensor(self.cut(image, central_box(image.width, image.height))), label


class EpochSampler(DistributedSampler[int]):
    """Gives places for `TrainingImages`: workers that live longer than an epoch would not know which one it is."""

    def __iter__(self) -> Iterator[tuple[int, int, int]]:  # type: ignore[override]
        return ((self.seed, self.epoch, index) for index in super().__iter__())


def list_classes(folder: Path) -> list[str]:
    """The names of the classes in train/ or val/, sorted.

    Raises:
        ValueError: there are none.
    """
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not classes:
        raise ValueError(f"{folder}: no classes found, want train/ and val/ there, with a folder for each class")
    return classes


def make_loaders(
    folder: Path, *, image_size: int, batch_size: int, workers: int, seed: int, rank: int, processes: int
) -> tuple[DataLoader[tuple[Tensor, int]], DataLoader[tuple[Tensor, int]]]:
    """Makes the loaders of one process for training and for validation.

    Args:
        folder: holds train/ and val/.
        image_size: pixels, wide and high.
        batch_size: images in a batch of this process.
        workers: processes that read, besides this one.
        seed: of order and cutouts.
        rank: of this process.
        processes: how many share the images.

    Raises:
        ValueError: the folder is not as wanted.
    """
    classes = list_classes(folder / "train")
    training = TrainingImages(folder / "train", classes, image_size)
    validation = ValidationImages(folder / "val", classes, image_size)
    if len(training) < batch_size * processes:
        raise ValueError(
            f"{folder / 'train'}: got {len(training)} images, want at least one batch: {batch_size} x {processes}"
        )
    sampler = EpochSampler(training, processes, rank, shuffle=True, seed=seed, drop_last=True)
    # A stray small batch has poor statistics to normalize by; in validation each image counts once.
    return (
        _loader(training, sampler, batch_size, workers, drop_last=True),
        _loader(validation, range(rank, len(validation), processes), batch_size, workers, drop_last=False),
    )


def random_box(width: int, height: int, draw: random.Random) -> Box:
    """Draws 8 to 100 % of the area, between 3:4 and 4:3 in shape (Szegedy et al. 2015)."""
    for _ in range(10):
        area = width * height * draw.uniform(0.08, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            left, top = draw.uniform(0, width - box_width), draw.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    return central_box(width, height)  # the image is too long for most boxes


def central_box(width: int, height: int) -> Box:
    """The square in the middle: 224 pixels where the shorter side has 256."""
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _list_images(folder: Path) -> list[str]:
    paths = [entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder}: no images found, want at least one file in it with {', '.join(SUFFIXES)}")
    return [str(path) for path in sorted(paths)]


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def _loader(
    images: ImageFolder, sampler: EpochSampler | range, batch_size: int, workers: int, *, drop_last: bool
) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(
        images,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
