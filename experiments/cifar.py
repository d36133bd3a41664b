"""Reads CIFAR-10 and CIFAR-100 (Krizhevsky 2009) out of the official archives for Python.

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

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Archive:
    file: str
    md5: str  # from the page of the data set
    train: tuple[str, ...]  # the files of the training images in it, in their order
    test: str
    label_key: bytes  # under which a file has its labels
    classes: int


CIFAR10 = Archive(
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    tuple(f"cifar-10-batches-py/data_batch_{index}" for index in range(1, 6)),
    "cifar-10-batches-py/test_batch",
    b"labels",
    10,
)
CIFAR100 = Archive(
    "cifar-100-python.tar.gz",
    "eb9058c3a382ffc7106e4002c42a8d85",
    ("cifar-100-python/train",),
    "cifar-100-python/test",
    b"fine_labels",
    100,
)


class ArchiveError(Exception):
    """An archive is missing or is not the official one; the message says what to fetch and where to put it."""


def read(archive: Archive, root: Path) -> tuple[Tensor, Tensor, int]:
    """Reads an archive.

    Returns:
        All images as bytes, (images, 3, 32, 32), those for testing last; their labels; how many are for testing.

    Raises:
        ArchiveError: the archive is missing or damaged.
    """
    path = root / archive.file
    remedy = f"fetch {archive.file} from {PAGE} and put it into {root.resolve()}"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ArchiveError(f"{path} is missing: {remedy}") from None
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != archive.md5:
        raise ArchiveError(f"{path} is damaged, its MD5 sum is {md5} and not {archive.md5}: {remedy}")
    images, labels = [], []
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        for name in (*archive.train, archive.test):
            file = tar.extractfile(name)
            assert file is not None, f"{name} is a file in the official archive"
            part = _ArrayUnpickler(file, encoding="bytes").load()  # Python 2 wrote them, whose strings are bytes
            images.append(torch.from_numpy(part[b"data"]).reshape(-1, 3, 32, 32))
            labels.append(torch.tensor(part[archive.label_key]))
    return torch.cat(images), torch.cat(labels), len(labels[-1])


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
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"the pickle calls {module}.{name}, want arrays and plain containers alone")
        return self._ALLOWED[module, name]
