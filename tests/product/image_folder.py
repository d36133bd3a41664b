"""A small folder of images, for the tests of the ImageNet example."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image


def write_images(folder: Path) -> None:
    """Writes two classes of images in several sizes, modes and formats."""
    draw = random.Random(0)
    for part, names in (("train", ("0.png", "1.jpg", "2.JPEG", "3.png")), ("val", ("0.png", "1.jpg", "2.png"))):
        for label, mode in (("cat", "RGB"), ("dog", "L")):
            (folder / part / label).mkdir(parents=True)
            for name in names:
                width, height = draw.randint(20, 50), draw.randint(20, 50)
                pixels = draw.randbytes(width * height * len(mode))
                Image.frombytes(mode, (width, height), pixels).save(folder / part / label / name)
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
