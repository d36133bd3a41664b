"""MNIST: read from files of the official form, and refused where one is missing or damaged."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments import mnist
from experiments.mnist import FILES, MissingDataError, read_official
from tests.helpers import message

COUNTS = (12, 5)  # images for training and for testing


def idx(elements: Tensor) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in elements.shape)
    return bytes([0, 0, 8, elements.dim()]) + sizes + elements.numpy().tobytes()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What stands in the four files in `tmp_path`, whose sums are taken for the official ones."""
    generator = torch.Generator().manual_seed(0)
    contents, sums = {}, {}
    for name in FILES:
        count = COUNTS[name.startswith("t10k")]
        shape = (count, 28, 28) if "images" in name else (count,)
        contents[name] = torch.randint(0, 256 if "images" in name else 10, shape, generator=generator).byte()
        (tmp_path / name).write_bytes(gzip.compress(idx(contents[name]), mtime=0))
        sums[name] = hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setattr(mnist, "FILES", sums)
    return contents


def test_what_was_written_is_read(written: dict[str, Tensor], tmp_path: Path) -> None:
    parts = read_official(tmp_path)
    for (images, labels), part, count in zip(parts, ("train", "t10k"), COUNTS, strict=True):
        assert images.shape == (count, 1, 28, 28)
        assert images.dtype == torch.uint8
        assert torch.equal(images[:, 0], written[f"{part}-images-idx3-ubyte.gz"])
        assert labels.dtype == torch.int64
        assert torch.equal(labels, written[f"{part}-labels-idx1-ubyte.gz"].long())


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_damaged_is_named(name: str, written: dict[str, Tensor], tmp_path: Path) -> None:
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1])
    with pytest.raises(MissingDataError, match=message(name, "is damaged", "fetch", str(tmp_path))):
        read_official(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(MissingDataError, match=message(name, "is missing", "fetch", str(tmp_path))):
        read_official(tmp_path)
