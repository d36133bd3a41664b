"""The data sets: CIFAR is read safely from archives of the official form, and noise is part of a data set."""

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
from torch import Tensor

pytest.importorskip("sklearn")

from sasgd_fused.experiments.augment import flip_and_rotate, random_flips_and_rotations
from sasgd_fused.experiments.cifar import CIFAR10, CIFAR100, Archive, ArchiveError, load_cifar, load_cifar_tuning
from sasgd_fused.experiments.data import DATASETS, batches
from tests.helpers import cpu_only

pytestmark = cpu_only("the experiments run there")

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
    return dataclasses.replace(archive, md5=md5, held_out=HELD_OUT)


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
    data = load_cifar(archive, tmp_path)
    assert data.validation is not None
    found = torch.cat([data.train_images, data.validation.images, data.test_images])
    assert torch.equal(
        torch.cat([data.train_labels, data.validation.labels, data.test_labels]), torch.from_numpy(labels)
    )
    training = len(labels) - EACH - HELD_OUT
    assert (len(data.train_labels), len(data.validation.labels)) == (training, HELD_OUT)
    seen = pixels[:training].astype(np.float64)
    mean, std = seen.mean(axis=(0, 2, 3), keepdims=True), seen.std(axis=(0, 2, 3), keepdims=True)
    torch.testing.assert_close(found.double(), torch.from_numpy((pixels - mean) / std), rtol=1e-4, atol=1e-4)
    assert data.classes == official.classes
    assert os.listdir(tmp_path) == [official.file]  # nothing was unpacked


def test_cifar_tuning_has_no_image_of_the_test(tmp_path: Path) -> None:
    archive, _, labels = small(CIFAR10, tmp_path)
    tuning = load_cifar_tuning(archive, tmp_path)
    assert tuning.validation is not None
    parts = [tuning.train_labels, tuning.validation.labels, tuning.test_labels]
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
        load_cifar(archive, tmp_path)


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
        load_cifar(archive, tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(trap)  # so the trap works
    assert (tmp_path / "ran").exists()


def test_batches_of_cifar_are_augmented_and_the_test_is_not(tmp_path: Path) -> None:
    archive, _, _ = small(CIFAR10, tmp_path)
    data = load_cifar(archive, tmp_path)
    before = data.train_images.clone()
    seen, again = ([images for images, _ in batches(data, 8, torch.Generator().manual_seed(0))] for _ in range(2))
    assert torch.equal(torch.cat(seen), torch.cat(again))
    assert torch.equal(data.train_images, before)
    originals = {image.numpy().tobytes() for image in data.train_images}
    assert not originals & {image.numpy().tobytes() for image in torch.cat(seen)}


# Augmentation


def pictures(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_flips_and_rotations_are_those_of_the_pixels() -> None:
    images = pictures()
    flips = torch.tensor([False, True] * 3)
    angles = torch.tensor([0.0, 0.0, 1.0, 1.0, -1.0, 2.0]) * torch.pi / 2
    wanted = [
        torch.rot90(image.flip(2) if flip else image, turns, (1, 2))
        for image, flip, turns in zip(images, flips, (0, 0, 1, 1, -1, 2), strict=True)
    ]
    torch.testing.assert_close(flip_and_rotate(images, flips, angles), torch.stack(wanted), rtol=0, atol=1e-5)


def test_half_of_the_images_are_flipped_and_angles_are_uniform() -> None:
    # A spot at the right edge of the middle: where it goes tells flip and angle.
    side, count, degrees = 63, 2000, 15.0
    image = torch.zeros(count, 1, side, side)
    image[:, :, side // 2, -8] = 1
    turned = random_flips_and_rotations(image, degrees, torch.Generator().manual_seed(0))
    place = torch.arange(side) - side // 2
    mass = turned.sum(dim=(1, 2, 3))
    x, y = ((turned * axis).sum(dim=(1, 2, 3)) / mass for axis in (place, place[:, None]))
    assert (x < 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    angles = torch.rad2deg(torch.atan(y / x))
    assert angles.abs().max() < degrees + 1
    quartiles = torch.quantile(angles, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([-0.5, 0.0, 0.5]) * degrees, rtol=0, atol=1.5)


def test_each_image_is_changed_in_its_own_way() -> None:
    images = pictures(1).expand(6, -1, -1, -1)
    changed = random_flips_and_rotations(images, 15.0, torch.Generator().manual_seed(0))
    assert len({image.numpy().tobytes() for image in changed}) == 6


# Noisy digits


def test_noise_belongs_to_the_data_set() -> None:
    state = torch.get_rng_state()
    first = DATASETS["noisy-digits"]()
    torch.rand(3)
    second = DATASETS["noisy-digits"]()
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    torch.set_rng_state(state)


def test_noisy_digits_are_those_digits_with_noise() -> None:
    clean, noisy = DATASETS["digits"](), DATASETS["noisy-digits"]()
    assert torch.equal(clean.test_labels, noisy.test_labels)
    wrong = (clean.train_labels != noisy.train_labels).float().mean().item()
    assert wrong == pytest.approx(0.2 * 0.9, abs=0.04)  # one in ten drawn anew comes out the same
    assert not torch.equal(clean.test_images, noisy.test_images)
    # The best shift of a noisy image onto its own digit fits better than onto the next one.
    own, other = (
        best_fit(noisy.test_images, clean.test_images),
        best_fit(noisy.test_images, clean.test_images.roll(1, 0)),
    )
    assert (own > other).float().mean() > 0.9


def best_fit(images: Tensor, digits: Tensor) -> Tensor:
    """The largest correlation of each image with its digit, shifted by up to one pixel."""
    background = torch.nn.functional.pad(digits, (1, 1, 1, 1), value=digits.min().item())
    fits = []
    for down in range(3):
        for right in range(3):
            shifted = background[:, :, down : down + 8, right : right + 8].flatten(1)
            fits.append(torch.cosine_similarity(images.flatten(1), shifted - shifted.mean(1, keepdim=True)))
    return torch.stack(fits).amax(0)


def test_tuning_on_noisy_digits_sees_nothing_of_the_test() -> None:
    data, tuning = DATASETS["noisy-digits"](), DATASETS["noisy-digits-tuning"]()
    clean = DATASETS["digits"]()
    assert len(tuning.train_labels) + len(tuning.test_labels) == len(data.train_labels)
    assert torch.equal(tuning.train_labels, data.train_labels[: len(tuning.train_labels)])
    assert torch.equal(tuning.test_labels, clean.train_labels[len(tuning.train_labels) :])  # the true ones
    # Standardised by other numbers, so the images are the same up to scale and shift.
    ours, theirs = tuning.train_images, data.train_images[: len(tuning.train_images)]
    scale = ours.std() / theirs.std()
    torch.testing.assert_close(ours, (theirs - theirs.mean()) * scale + ours.mean(), rtol=0, atol=1e-4)
