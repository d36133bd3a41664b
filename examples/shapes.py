"""Generated images of coloured shapes on noise, so that the examples need no download."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("background", "square", "disc", "cross")


def draw(kinds: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws shapes at random places, in random sizes, each kind in tints of a colour of its own.

    Args:
        kinds: indices into `KINDS`, of shape (images, shapes in each); a later shape hides an earlier one.
        size: pixels that an image is high and wide, at least 16.
        generator: of all that is random.

    Returns:
        Images, of shape (images, 3, size, size), with values between -1 and 1 before noise of deviation 0.3 is added;
        and the kind of each pixel, of shape (images, size, size), int64.
    """
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pixels = torch.zeros(len(kinds), size, size, dtype=torch.int64)
    tints = torch.rand(len(kinds), len(KINDS), 3, generator=generator)
    colours = tints + torch.eye(len(KINDS), 3).roll(1, 0) - 1  # the background's is any dark one
    for image, shapes in zip(pixels, kinds.tolist(), strict=True):
        for kind in shapes:
            radius = int(torch.randint(size // 8, size // 4, (), generator=generator))
            row, column = torch.randint(radius, size - radius, (2,), generator=generator).tolist()
            across, along = (rows - row).abs(), (columns - column).abs()
            inside = {
                "square": torch.maximum(across, along) <= radius,
                "disc": across**2 + along**2 <= radius**2,
                "cross": (torch.minimum(across, along) <= radius / 3) & (torch.maximum(across, along) <= radius),
            }
            image[inside[KINDS[kind]]] = kind
    images = torch.stack([colour[image] for colour, image in zip(colours, pixels, strict=True)]).permute(0, 3, 1, 2)
    return images + 0.3 * torch.randn(images.shape, generator=generator), pixels
