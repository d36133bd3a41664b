"""The images of the ImageNet example: each is read once an epoch; errors say what is wanted."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import cpu_only

pytest.importorskip("PIL")

import imagenet
import imagenet_data

from tests.product.image_folder import write_images

pytestmark = cpu_only("the example is tested there")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_no_image(path: Path) -> None:
    for image in path.iterdir():
        image.unlink()


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("train", remove, "train: no classes found, want train/ and val/ there, with a folder for each class"),
        ("val", remove, "val: no classes found, want train/ and val/ there, with a folder for each class"),
        ("val/dog", remove, "val/dog: no images found, want at least one file in it with .*jpg"),
        ("train/cat", keep_no_image, "train/cat: no images found, want at least one file in it with .*jpg"),
        ("val/cow", Path.mkdir, "val/cow: a class that is not in train/, want the same classes in both"),
        ("train/dog/0.png", remove, r"train: got 7 images, want at least one batch: 4 x 2"),
    ],
)
def test_a_folder_that_is_not_as_wanted(place: str, change: Callable[[Path], None], message: str, folder: Path) -> None:
    change(folder / place)
    with pytest.raises(ValueError, match=message):
        make_loaders(folder)


@pytest.mark.parametrize("end", [0, -200], ids=["empty", "cut off"])
def test_a_damaged_image_is_named(end: int, folder: Path) -> None:
    path = folder / "train" / "dog" / "1.jpg"
    path.write_bytes(path.read_bytes()[:end])
    training, _ = make_loaders(folder)
    with pytest.raises(ValueError, match=r"dog/1\.jpg: cannot be read as an image: "):
        training.dataset[0, 0, 5]


def make_loaders(folder: Path, rank: int = 0) -> tuple[imagenet.Loader, imagenet.Loader]:
    return imagenet_data.make_loaders(folder, image_size=16, batch_size=4, workers=0, seed=0, rank=rank, processes=2)


def test_each_image_is_read_once_an_epoch(folder: Path) -> None:
    """By one of the processes, in another order and with other cutouts in the next epoch."""
    read: dict[str, list[Any]] = {"train": [], "next": [], "val": []}
    for rank in (0, 1):
        training, validation = make_loaders(folder, rank)
        read["train"] += list(training.sampler)
        training.sampler.set_epoch(1)  # type: ignore[attr-defined]
        read["next"] += list(training.sampler)
        read["val"] += list(validation.sampler)
    assert sorted(read["val"]) == list(range(6))
    assert sorted(read["train"]) == [(0, 0, index) for index in range(8)]
    assert sorted(read["next"]) == [(0, 1, index) for index in range(8)]
    assert [place[2] for place in read["next"]] != [place[2] for place in read["train"]]
    images = training.dataset
    (first, label), (again, _), (later, _) = images[0, 0, 0], images[0, 0, 0], images[0, 1, 0]
    assert (first.shape, first.dtype, label) == ((16, 16, 3), torch.uint8, 0)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_boxes_lie_within_the_image() -> None:
    draw = random.Random(0)
    for width, height in [(500, 375), (20, 60), (3000, 10)]:
        for _ in range(100):
            left, top, right, bottom = imagenet_data.random_box(width, height, draw)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
    assert imagenet_data.central_box(512, 256) == (144, 16, 368, 240)
