"""The comparison: every method from the same initialisation on the same batches, for every seed and variation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.data import DATASETS, ROOT
from experiments.methods import Tuned
from experiments.models import MODELS, initialise, scale_badly
from experiments.resume import Unfinished
from experiments.train import train


@dataclass(frozen=True)
class Variation:
    """A change of the setting, with learning rate and weight decay as they were tuned without it.

    Attributes:
        kind: what the command line calls it.
        lr: factor of the learning rate.
        decades: each hidden layer's initial weights are multiplied by 10^-decades to 10^decades, see `scale_badly`.
        width: factor of the hidden layers' widths.
    """

    kind: str
    lr: float = 1.0
    decades: float = 0.0
    width: float = 1.0


TUNED = "tuned"
VARIATIONS: dict[str, Variation] = {
    TUNED: Variation(TUNED),
    **{f"lr x {10**power:.2g}": Variation("lr", lr=10**power) for power in (-1, -0.5, 0.5, 1)},
    "init": Variation("init", decades=1),
    **{f"width x {factor:g}": Variation("width", width=factor) for factor in (0.5, 2)},
}
KINDS = tuple(dict.fromkeys(variation.kind for variation in VARIATIONS.values() if variation.kind != TUNED))


def choose(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the keys of the variations of some kinds, the unchanged setting first."""
    return tuple(name for name, variation in VARIATIONS.items() if variation.kind in (TUNED, *kinds))


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
        schedule: of the learning rate, as `train` has it.
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


@dataclass(frozen=True)
class RunResult:
    """What one run gave: the curves of its `History`, and the median time of a step.

    Attributes:
        method: key in `METHODS`.
        seed: of the initialisation and the batches.
        variation: key in `VARIATIONS`.
    """

    method: str
    seed: int
    variation: str
    train_loss: list[float]
    test_error: list[float]
    layer_scale: list[list[float]]
    step_ms: float
    seconds: float


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
            change = VARIATIONS[variation]
            initial = MODELS[settings.model](data.test[0].shape[1], data.classes, change.width)
            initialise(initial, seed)
            if change.decades:
                scale_badly(initial, seed, change.decades)
            for name, method in methods.items():
                where = f"seed {seed}  " + (f"{variation:12}  " if len(settings.variations) > 1 else "")
                progress.update(bar, description=f"{where}{method.label}")
                if unfinished and (done := unfinished.find(name, seed, variation)):
                    result = RunResult(**done)
                    progress.advance(bar, settings.epochs)
                else:
                    model = copy.deepcopy(initial).to(settings.device)
                    history = train(
                        model,
                        replace(method, lr=method.lr * change.lr).build(model, settings.backend),
                        data,
                        seed=seed,
                        epochs=settings.epochs,
                        batch_size=settings.batch_size,
                        schedule=settings.schedule,
                        on_epoch=partial(progress.advance, bar),
                        checkpoint=unfinished.checkpoint(name, seed, variation) if unfinished else None,
                    )
                    figures = {**asdict(history), "step_ms": median(history.step_ms)}
                    result = RunResult(name, seed, variation, **figures)
                    if unfinished:
                        unfinished.add(asdict(result))
                results.append(result)
                console.print(
                    f"{where}{method.label:20}  training loss {result.train_loss[-1]:.4f}  "
                    f"test error {result.test_error[-1]:.2f} %"
                )
    return results
