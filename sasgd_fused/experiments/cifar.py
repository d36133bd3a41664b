"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), 32 x 32 pixels in colour, out of the official archives for Python.

An archive is checked, then read in memory; nothing is unpacked. Its files are pickles, which could run any code: only
what NumPy's arrays are made of is let through.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sasgd_fused.experiments.augment import random_flips_and_rotations
from sasgd_fused.experiments.dataset import Dataset, Part

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
SIDE, CHANNELS = 32, 3
# The paper turns images, but does not say how far.
DEGREES = 15.0
# The last training images are held out, and watched by a schedule; the paper's validation set is not described.
HELD_OUT = 5000


@dataclass(frozen=True)
class Archive:
    """An official archive.

    Attributes:
        file: its name.
        md5: its checksum, from the page of the data set.
        train: the files of the training images in it, in their order.
        test: the file of the test images.
        label_key: under which a file has its labels.
        classes: how many labels there are.
        held_out: how many of the last training images are for validation.
    """

    file: str
    md5: str
    train: tuple[str, ...]
    test: str
    label_key: bytes
    classes: int
    held_out: int = HELD_OUT


CIFAR10 = Archive(
    file="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    train=tuple(f"cifar-10-batches-py/data_batch_{index}" for index in range(1, 6)),
    test="cifar-10-batches-py/test_batch",
    label_key=b"labels",
    classes=10,
)
CIFAR100 = Archive(
    file="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    train=("cifar-100-python/train",),
    test="cifar-100-python/test",
    label_key=b"fine_labels",
    classes=100,
)


class ArchiveError(Exception):
    """An archive is missing or is not the official one; the message says what to fetch and where to put it."""


def load_cifar(archive: Archive, root: Path) -> Dataset:
    """Loads a data set, 45,000 images to train on, 5,000 to watch, 10,000 to test on.

    Args:
        archive: which one.
        root: the folder that it is in.

    Raises:
        ArchiveError: it is missing or damaged.
    """
    train, test = _read(archive, root)
    return _standardise(archive, *train.split(-archive.held_out), test)


def load_cifar_tuning(archive: Archive, root: Path) -> Dataset:
    """Loads the training images alone, 40,000 to train on, 5,000 to watch, 5,000 to choose hyperparameters by.

    Args:
        archive: which one.
        root: the folder that it is in.

    Raises:
        ArchiveError: it is missing or damaged.
    """
    rest, test = _read(archive, root)[0].split(-archive.held_out)
    return _standardise(archive, *rest.split(-archive.held_out), test)


def _standardise(archive: Archive, train: Part, validation: Part, test: Part) -> Dataset:
    """Standardises each colour by mean and deviation of the training images."""
    train_images = train.images.float()
    std, mean = torch.std_mean(train_images, dim=(0, 2, 3), keepdim=True)
    return Dataset(
        train_images.sub_(mean).div_(std),  # in place: these are 600 MB
        train.labels,
        (test.images - mean) / std,
        test.labels,
        classes=archive.classes,
        augment=_flip_and_rotate,
        validation=Part((validation.images - mean) / std, validation.labels),
    )


def _flip_and_rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    return random_flips_and_rotations(images, DEGREES, generator)


def _read(archive: Archive, root: Path) -> tuple[Part, Part]:
    """Reads training and test images, as bytes."""
    path = root / archive.file
    remedy = f"fetch {archive.file} from {PAGE} and put it into {root.resolve()}"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ArchiveError(f"{path} is missing: {remedy}") from None
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != archive.md5:
        raise ArchiveError(f"{path} is damaged, its MD5 sum is {md5} and not {archive.md5}: {remedy}")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        *train, test = (_read_file(tar, name, archive.label_key) for name in (*archive.train, archive.test))
    return Part(torch.cat([part.images for part in train]), torch.cat([part.labels for part in train])), test


def _read_file(tar: tarfile.TarFile, name: str, label_key: bytes) -> Part:
    file = tar.extractfile(name)
    assert file is not None, f"{name} is a file in the official archive"
    content = _ArrayUnpickler(file, encoding="bytes").load()  # Python 2 wrote them, whose strings are bytes
    images = torch.from_numpy(content[b"data"]).reshape(-1, CHANNELS, SIDE, SIDE)
    return Part(images, torch.tensor(content[label_key]))


class _ArrayUnpickler(pickle.Unpickler):
    """Loads plain containers and NumPy arrays, and refuses all else, which could run code."""

    # NumPy has moved the function; the archives know it by its old place.
    _RECONSTRUCT: ClassVar[Any] = np.empty(0).__reduce__()[0]
    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Looks up what a pickle calls by its name."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"the pickle calls {module}.{name}, want arrays and plain containers alone")
        return self._ALLOWED[module, name]
