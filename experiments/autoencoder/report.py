"""What the benchmark says: tables of both criteria and of the tuning, and the picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from experiments.analysis import Estimate
from experiments.autoencoder.methods import METHODS
from experiments.autoencoder.picture import draw_curves
from experiments.autoencoder.plan import CRITERIA, RATES, SEEDS, Curves, choose, compared, tuning_losses
from experiments.autoencoder.presets import PRESETS
from experiments.report import INTERVALS, versions
from experiments.tables import Table

FIRST = "sgd"  # that the others are held against
BEST = "kfac-plain"  # and what the thesis compares with


def write_autoencoder_report(folder: Path, preset: str, methods: Sequence[str], curves: Curves) -> Path:
    """Writes the report and its picture into a folder, named after the preset; returns the report's path."""
    shape = PRESETS[preset]
    picture = folder / f"{preset}.png"
    draw_curves(picture, preset, methods, curves)
    tables = [_losses(preset, methods, criterion, curves).to_markdown() for criterion in CRITERIA]
    made_with = ", ".join(f"{name} {value}" for name, value in versions("torch").items())
    report = folder / f"{preset}.md"
    report.write_text(
        f"# {preset}\n\n{'-'.join(map(str, shape.widths))} with sigmoids, batches of {shape.batch_size}, one thread, "
        f"constant learning rates. Loss: squared error of an image, summed over its pixels. {made_with}.\n\n"
        + "\n".join(
            (
                f"## After {shape.updates} updates\n\n{tables[0]}",
                f"## After {shape.seconds:g} seconds of a processor\n\n{tables[1]}",
                f"{INTERVALS}![Curves over updates and over time]({picture.name})\n",
                f"## Tuning\n\n{_tuning(preset, methods, curves).to_markdown()}",
            )
        ),
        encoding="utf-8",
    )
    return report


def _losses(preset: str, methods: Iterable[str], criterion: str, curves: Curves) -> Table:
    """Makes the table of a criterion, the lowest loss first."""
    losses = {
        method: [CRITERIA[criterion](preset, curve) for curve in compared(preset, method, criterion, curves)]
        for method in methods
    }
    rows = []
    for method in sorted(losses, key=lambda name: median(losses[name])):
        own = compared(preset, method, criterion, curves)
        times = [1e3 * curve.seconds[-1] / curve.updates[-1] for curve in own]
        differences = [
            Estimate.of([a - b for a, b in zip(losses[method], losses[other], strict=True)]).format(2, "+")
            if other in losses and other != method
            else ""
            for other in (FIRST, BEST)
        ]
        diverged = sum(math.isinf(loss) for loss in losses[method])
        mean = f"{diverged} of {len(own)} diverged" if diverged else Estimate.of(losses[method]).format(2)
        lr = choose(preset, method, criterion, curves)
        rows.append([METHODS[method].label, f"{lr:g}", mean, *differences, f"{median(times):.1f}"])
    others = (f"above {METHODS[other].label}" for other in (FIRST, BEST))
    return Table(
        ("method", "lr", "training loss", *others, "ms an update"),
        rows,
        f"Mean over the batches of the last epoch within the limit, then over {len(SEEDS)} seeds ± half of its 95 % "
        "interval; differences are paired by seed.",
    )


def _tuning(preset: str, methods: Iterable[str], curves: Curves) -> Table:
    rows = []
    for method in methods:
        by_rate = zip(*(tuning_losses(preset, method, name, curves).values() for name in CRITERIA), strict=True)
        rows.append([METHODS[method].label, *(" / ".join(map(_loss, losses)) for losses in by_rate)])
    heading = ("method", *(f"{lr:g}" for lr in RATES))
    return Table(heading, rows, "Loss after the updates / after the seconds, one seed; - where a run diverged.")


def _loss(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "-"
