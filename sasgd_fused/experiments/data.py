"""The data sets by name; those that end in `-tuning` share no image with what the others test on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from sasgd_fused.experiments.cifar import CIFAR10, CIFAR100, ArchiveError, load_cifar, load_cifar_tuning
from sasgd_fused.experiments.dataset import Dataset, batches
from sasgd_fused.experiments.digits import digits, digits_tuning, noisy_digits, noisy_digits_tuning

__all__ = ["DATASETS", "ROOT", "ArchiveError", "Dataset", "batches"]

ROOT = Path("data")


class Loader(Protocol):
    """Loads a data set, from the folder of archives where it comes from one."""

    def __call__(self, root: Path = ROOT) -> Dataset:
        """Raises ArchiveError where the archive is missing or damaged."""
        ...


def _built_in(make: Callable[[], Dataset]) -> Loader:
    def load(root: Path = ROOT) -> Dataset:
        return make()

    return load


DATASETS: dict[str, Loader] = {
    "digits": _built_in(digits),
    "digits-tuning": _built_in(digits_tuning),
    "noisy-digits": _built_in(noisy_digits),
    "noisy-digits-tuning": _built_in(noisy_digits_tuning),
    "cifar10": partial(load_cifar, CIFAR10),
    "cifar10-tuning": partial(load_cifar_tuning, CIFAR10),
    "cifar100": partial(load_cifar, CIFAR100),
    "cifar100-tuning": partial(load_cifar_tuning, CIFAR100),
}
