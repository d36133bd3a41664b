"""The data sets and their batches: split without overlap, noise is part of a data set, augmentation changes images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from experiments.data import DATASETS, Dataset, batches, flip_and_rotate, random_crops, random_flips_and_rotations


def test_digits_are_split_without_overlap_and_standardised() -> None:
    data = DATASETS["digits"]()
    train_images = data.train[0][:, :, 1:-1, 1:-1]
    assert train_images.shape == (898, 1, 8, 8)
    assert data.test[0].shape == (899, 1, 8, 8)
    torch.testing.assert_close(train_images.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(train_images.std(), torch.tensor(1.0), atol=1e-5, rtol=0)
    # The margin is background, the darkest there is.
    assert set(data.train[0][:, :, 0].flatten().tolist()) == {train_images.min().item()}


def test_tuning_does_not_see_the_test_images() -> None:
    data, tuning = DATASETS["digits"](), DATASETS["digits-tuning"]()
    assert len(tuning.train[1]) + len(tuning.test[1]) == len(data.train[1])
    assert torch.equal(torch.cat([tuning.train[1], tuning.test[1]]), data.train[1])


def test_random_crops_are_windows_of_their_image() -> None:
    images = torch.arange(40 * 25, dtype=torch.float32).reshape(40, 1, 5, 5)
    crops = random_crops(images, torch.Generator().manual_seed(0), 3)
    offsets = crops[:, 0, 0, 0] - images[:, 0, 0, 0]
    assert set(offsets.tolist()) == {0, 1, 2, 5, 6, 7, 10, 11, 12}
    for image, crop, offset in zip(images, crops, offsets.int().tolist(), strict=True):
        top, left = divmod(offset, 5)
        assert torch.equal(crop, image[:, top : top + 3, left : left + 3])


def test_an_epoch_shows_each_image_once() -> None:
    count = 10
    images = torch.arange(count, dtype=torch.float32).reshape(count, 1, 1, 1)
    data = Dataset((images, torch.arange(count)), (images, torch.arange(count)), classes=count)
    seen = [labels for _, labels in batches(data, 3, torch.Generator().manual_seed(0))]
    assert [len(labels) for labels in seen] == [3, 3, 3]
    assert len(set(torch.cat(seen).tolist())) == 9
    for batch, labels in batches(data, 5, torch.Generator().manual_seed(0)):
        assert torch.equal(batch.flatten(), labels.float())


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
    turned = random_flips_and_rotations(image, torch.Generator().manual_seed(0), degrees)
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
    changed = random_flips_and_rotations(images, torch.Generator().manual_seed(0), 15.0)
    assert len({image.numpy().tobytes() for image in changed}) == 6


# Noisy digits


def test_noise_belongs_to_the_data_set() -> None:
    state = torch.get_rng_state()
    first = DATASETS["noisy-digits"]()
    torch.rand(3)
    second = DATASETS["noisy-digits"]()
    assert all(map(torch.equal, (*first.train, *first.test), (*second.train, *second.test)))
    torch.set_rng_state(state)


def test_noisy_digits_are_those_digits_with_noise() -> None:
    clean, noisy = DATASETS["digits"](), DATASETS["noisy-digits"]()
    assert torch.equal(clean.test[1], noisy.test[1])
    wrong = (clean.train[1] != noisy.train[1]).float().mean().item()
    assert wrong == pytest.approx(0.2 * 0.9, abs=0.04)  # one in ten drawn anew comes out the same
    assert not torch.equal(clean.test[0], noisy.test[0])
    # The best shift of a noisy image onto its own digit fits better than onto the next one.
    own, other = (
        best_fit(noisy.test[0], clean.test[0]),
        best_fit(noisy.test[0], clean.test[0].roll(1, 0)),
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
    assert len(tuning.train[1]) + len(tuning.test[1]) == len(data.train[1])
    assert torch.equal(tuning.train[1], data.train[1][: len(tuning.train[1])])
    assert torch.equal(tuning.test[1], clean.train[1][len(tuning.train[1]) :])  # the true ones
    # Standardised by other numbers, so the images are the same up to scale and shift.
    ours, theirs = tuning.train[0], data.train[0][: len(tuning.train[0])]
    scale = ours.std() / theirs.std()
    torch.testing.assert_close(ours, (theirs - theirs.mean()) * scale + ours.mean(), rtol=0, atol=1e-4)
