"""CIFAR: read safely from archives of the official form, split as it should be, and augmented."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from experiments.cifar import CIFAR10, CIFAR100, Archive, ArchiveError
from experiments.data import DATASETS, batches, load_cifar

EACH = 20  # images in a file
HELD_OUT = 4


PythonPickler: Any = pickle._Pickler  # type: ignore[attr-defined]


def python2_pickle(content: dict[str, Any]) -> bytes:
    """A pickle of protocol 2 whose strings have the opcode of Python 2's, and NumPy's function its old place."""

    class Pickler(PythonPickler):  # type: ignore[misc]
        dispatch: ClassVar[dict[type, Any]] = PythonPickler.dispatch.copy()

        def save_str(self, text: str) -> None:
            data = text.encode("latin-1")
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
            self.memoize(text)

        def save_bytes(self, data: bytes) -> None:
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
            self.memoize(data)

        dispatch[str] = save_str
        dispatch[bytes] = save_bytes

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_archive(archive: Archive, root: Path, files: dict[str, bytes]) -> Archive:
    """Writes an archive; returns it with the checksum."""
    with tarfile.open(root / archive.file, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    md5 = hashlib.md5((root / archive.file).read_bytes()).hexdigest()
    return dataclasses.replace(archive, md5=md5)


def small(archive: Archive, root: Path) -> tuple[Archive, NDArray[np.uint8], NDArray[np.int64]]:
    """Writes an archive of few images; returns it with all images and labels, those for testing last."""
    names = (*archive.train, archive.test)
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (len(names) * EACH, 3072), dtype=np.uint8)
    labels = chance.integers(0, archive.classes, len(pixels))
    files = {"folder/readme.html": b"not looked at"}
    for index, name in enumerate(names):
        here = slice(index * EACH, (index + 1) * EACH)
        content = {"data": pixels[here], archive.label_key.decode(): labels[here].tolist(), "batch_label": "of no use"}
        files[name] = python2_pickle(content)
    return write_archive(archive, root, files), pixels.reshape(-1, 3, 32, 32), labels


@pytest.mark.parametrize("official", [CIFAR10, CIFAR100], ids=lambda archive: archive.file)
def test_cifar_is_read_as_it_was_written(official: Archive, tmp_path: Path) -> None:
    archive, pixels, labels = small(official, tmp_path)
    data = load_cifar(archive, tmp_path, held_out=HELD_OUT)
    assert data.validation is not None
    found = torch.cat([data.train[0], data.validation[0], data.test[0]])
    assert torch.equal(torch.cat([data.train[1], data.validation[1], data.test[1]]), torch.from_numpy(labels))
    training = len(labels) - EACH - HELD_OUT
    assert (len(data.train[1]), len(data.validation[1])) == (training, HELD_OUT)
    seen = pixels[:training].astype(np.float64)
    mean, std = seen.mean(axis=(0, 2, 3), keepdims=True), seen.std(axis=(0, 2, 3), keepdims=True)
    torch.testing.assert_close(found.double(), torch.from_numpy((pixels - mean) / std), rtol=1e-4, atol=1e-4)
    assert data.classes == official.classes
    assert os.listdir(tmp_path) == [official.file]  # nothing was unpacked


def test_cifar_tuning_has_no_image_of_the_test(tmp_path: Path) -> None:
    archive, _, labels = small(CIFAR10, tmp_path)
    tuning = load_cifar(archive, tmp_path, tuning=True, held_out=HELD_OUT)
    assert tuning.validation is not None
    parts = [tuning.train[1], tuning.validation[1], tuning.test[1]]
    assert [len(part) for part in parts] == [5 * EACH - 2 * HELD_OUT, HELD_OUT, HELD_OUT]
    assert torch.equal(torch.cat(parts), torch.from_numpy(labels[: 5 * EACH]))


def test_the_official_checksums_are_asked_for(tmp_path: Path) -> None:
    for name, archive, md5 in (
        ("cifar10", CIFAR10, "c58f30108f718f92721af3b95e74349a"),
        ("cifar100", CIFAR100, "eb9058c3a382ffc7106e4002c42a8d85"),
    ):
        small(archive, tmp_path)
        for split in (name, f"{name}-tuning"):
            with pytest.raises(ArchiveError, match=rf"is damaged.* and not {md5}"):
                DATASETS[split](tmp_path)


def test_a_missing_archive_says_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError) as error:
        load_cifar(CIFAR100, tmp_path / "data")
    for part in ("cifar-100-python.tar.gz is missing", "https://www.cs.toronto.edu/~kriz", str(tmp_path / "data")):
        assert part in str(error.value)


def test_a_damaged_archive_is_noticed(tmp_path: Path) -> None:
    archive, _, _ = small(CIFAR10, tmp_path)
    path = tmp_path / archive.file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=f"is damaged.*: fetch {archive.file}"):
        load_cifar(archive, tmp_path, held_out=HELD_OUT)


class Command:
    """Would run a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    trap = pickle.dumps({"data": Command(f"touch {tmp_path / 'ran'}")}, protocol=2)
    archive = write_archive(CIFAR100, tmp_path, dict.fromkeys((*CIFAR100.train, CIFAR100.test), trap))
    with pytest.raises(pickle.UnpicklingError, match="system"):
        load_cifar(archive, tmp_path, held_out=HELD_OUT)
    assert not (tmp_path / "ran").exists()
    pickle.loads(trap)  # so the trap works
    assert (tmp_path / "ran").exists()


def test_batches_of_cifar_are_augmented_and_the_test_is_not(tmp_path: Path) -> None:
    archive, _, _ = small(CIFAR10, tmp_path)
    data = load_cifar(archive, tmp_path, held_out=HELD_OUT)
    before = data.train[0].clone()
    seen, again = ([images for images, _ in batches(data, 8, torch.Generator().manual_seed(0))] for _ in range(2))
    assert torch.equal(torch.cat(seen), torch.cat(again))
    assert torch.equal(data.train[0], before)
    originals = {image.numpy().tobytes() for image in data.train[0]}
    assert not originals & {image.numpy().tobytes() for image in torch.cat(seen)}
