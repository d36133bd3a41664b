"""Random changes of training images, for a whole batch at once and on the device of its generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def random_crops(images: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Cuts a window of the given size out of every image, each at a place of its own."""
    windows = images.unfold(2, height, 1).unfold(3, width, 1)  # (images, channels, places, places, height, width)
    count, down, right = len(windows), windows.shape[2], windows.shape[3]
    top = torch.randint(down, (count,), generator=generator, device=generator.device)
    left = torch.randint(right, (count,), generator=generator, device=generator.device)
    return windows[torch.arange(count, device=images.device), :, top, left]


def random_flips_and_rotations(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Mirrors every other image by chance and turns each by an angle of its own, uniform up to `degrees` either way."""
    flips, angles = torch.rand(2, len(images), generator=generator, device=generator.device)
    return flip_and_rotate(images, flips < 0.5, (2 * angles - 1) * math.radians(degrees))


def flip_and_rotate(images: Tensor, flips: Tensor, angles: Tensor) -> Tensor:
    """Mirrors images left to right, then turns them about their centre, in one bilinear interpolation.

    What comes in from outside of an image is 0, the mean of standardised pixels.

    Args:
        images: (images, channels, side, side).
        flips: bool, (images,), which to mirror.
        angles: (images,), radians, counterclockwise.
    """
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    side = 1 - 2 * flips.to(angles.dtype)
    # From where in the image each pixel of the result is taken: turned back, then mirrored.
    rows = (torch.stack((side * cosine, -side * sine, zero), 1), torch.stack((sine, cosine, zero), 1))
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
