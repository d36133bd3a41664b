"""The comparison: every method from the same initialisation on the same batches, for every seed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sasgd_fused.experiments.data import DATASETS, ROOT
from sasgd_fused.experiments.methods import Method
from sasgd_fused.experiments.models import MODELS, initialise
from sasgd_fused.experiments.train import RunResult, train
from sasgd_fused.experiments.unfinished import Unfinished


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
        schedule: key in `SCHEDULES`.
        device: where data and networks are, as torch has it.
    """

    dataset: str = "digits"
    model: str = "vgg7"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    epochs: int = 30
    batch_size: int = 64
    backend: str | None = None
    schedule: str = "cosine"
    device: str = "cpu"


def compare(
    settings: Settings,
    methods: Mapping[str, Method],
    console: Console,
    *,
    root: Path = ROOT,
    unfinished: Unfinished | None = None,
) -> list[RunResult]:
    """Trains with every method for every seed and shows progress on the console.

    Methods take turns within a seed, so that a disturbance of the machine does not hit one alone.

    Args:
        settings: what all runs share.
        methods: what to compare.
        console: where to show it.
        root: the folder of the archives of data.
        unfinished: keeps what is done, and has what was done before; None to keep nothing.

    Raises:
        ArchiveError: an archive is missing or damaged.
        ValueError: the schedule watches the validation error, and the data set has no images for that.
    """
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(settings.seeds) * len(methods) * settings.epochs)
        data = DATASETS[settings.dataset](root).to(torch.device(settings.device))
        for seed in settings.seeds:
            initial = MODELS[settings.model](data.test_images.shape[1], data.classes)
            initialise(initial, seed)
            initial.to(settings.device)
            for name, method in methods.items():
                progress.update(bar, description=f"seed {seed}, {method.label}")
                result = unfinished.find(name, seed) if unfinished else None
                if result:
                    progress.advance(bar, settings.epochs)
                else:
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
                        schedule=settings.schedule,
                        checkpoint=unfinished.checkpoint(name, seed) if unfinished else None,
                    )
                    if unfinished:
                        unfinished.add(result)
                results.append(result)
                console.print(
                    f"seed {seed}  {method.label:20}  training loss {result.train_loss[-1]:.4f}  "
                    f"test error {result.test_error[-1]:.2f} %"
                )
    return results
