"""The comparison: every method from the same initialisation on the same batches, for every seed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sasgd_fused.experiments.data import DATASETS
from sasgd_fused.experiments.methods import Method
from sasgd_fused.experiments.models import MODELS, initialise
from sasgd_fused.experiments.train import RunResult, train


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison share.

    Attributes:
        dataset: key in `DATASETS`.
        model: key in `MODELS`.
        seeds: one run of every method for each.
        epochs: passes over the training images.
        batch_size: images in a batch.
        backend: of `ScaleAmendedSGD`, None for the fastest.
    """

    dataset: str = "digits"
    model: str = "vgg7"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    epochs: int = 30
    batch_size: int = 64
    backend: str | None = None


def compare(settings: Settings, methods: Mapping[str, Method], console: Console) -> list[RunResult]:
    """Trains with every method for every seed and shows progress on the console.

    Methods take turns within a seed, so that a disturbance of the machine does not hit one alone.
    """
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(settings.seeds) * len(methods) * settings.epochs)
        data = DATASETS[settings.dataset]()
        for seed in settings.seeds:
            initial = MODELS[settings.model](data.test_images.shape[1], data.classes)
            initialise(initial, seed)
            for name, method in methods.items():
                progress.update(bar, description=f"seed {seed}, {method.label}")
                result = train(
                    name,
                    method,
                    copy.deepcopy(initial),
                    data,
                    seed=seed,
                    epochs=settings.epochs,
                    batch_size=settings.batch_size,
                    backend=settings.backend,
                    on_epoch=partial(progress.advance, bar),
                )
                results.append(result)
                console.print(
                    f"seed {seed}  {method.label:20}  training loss {result.train_loss[-1]:.4f}  "
                    f"test error {result.test_error[-1]:.2f} %"
                )
    return results
