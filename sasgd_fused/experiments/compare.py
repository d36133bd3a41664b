"""The comparison: every method from the same initialisation on the same batches, for every seed and variation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from sasgd_fused.experiments.data import DATASETS, ROOT, Dataset
from sasgd_fused.experiments.methods import Tuned
from sasgd_fused.experiments.models import MODELS, initialise, scale_badly
from sasgd_fused.experiments.train import RunResult, train
from sasgd_fused.experiments.unfinished import Unfinished
from sasgd_fused.experiments.variations import TUNED, VARIATIONS, Variation


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
        variations: keys in `VARIATIONS`, one run of every method and seed for each.
    """

    dataset: str = "digits"
    model: str = "vgg7"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    epochs: int = 30
    batch_size: int = 64
    backend: str | None = None
    schedule: str = "cosine"
    device: str = "cpu"
    variations: tuple[str, ...] = (TUNED,)


def compare(
    settings: Settings,
    methods: Mapping[str, Tuned],
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
    count = len(settings.seeds) * len(settings.variations) * len(methods)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=count * settings.epochs)
        data = DATASETS[settings.dataset](root).to(torch.device(settings.device))
        for seed, variation in product(settings.seeds, settings.variations):
            initial = _make_model(settings, data, seed, VARIATIONS[variation])
            for name, method in methods.items():
                where = f"seed {seed}  " + (f"{variation:12}  " if len(settings.variations) > 1 else "")
                progress.update(bar, description=f"{where}{method.label}")
                result = unfinished.find(name, seed, variation) if unfinished else None
                if result:
                    progress.advance(bar, settings.epochs)
                else:
                    result = train(
                        name,
                        replace(method, lr=method.lr * VARIATIONS[variation].lr),
                        copy.deepcopy(initial),
                        data,
                        seed=seed,
                        epochs=settings.epochs,
                        batch_size=settings.batch_size,
                        backend=settings.backend,
                        on_epoch=partial(progress.advance, bar),
                        schedule=settings.schedule,
                        variation=variation,
                        checkpoint=unfinished.checkpoint(name, seed, variation) if unfinished else None,
                    )
                    if unfinished:
                        unfinished.add(result)
                results.append(result)
                console.print(
                    f"{where}{method.label:20}  training loss {result.train_loss[-1]:.4f}  "
                    f"test error {result.test_error[-1]:.2f} %"
                )
    return results


def _make_model(settings: Settings, data: Dataset, seed: int, variation: Variation) -> nn.Sequential:
    model = MODELS[settings.model](data.test_images.shape[1], data.classes, variation.width)
    initialise(model, seed)
    if variation.decades:
        scale_badly(model, seed, variation.decades)
    return model.to(settings.device)
