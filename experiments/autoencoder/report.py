"""What the benchmark says: tables of both criteria and of the tuning, and the picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median

from experiments.analysis import Estimate
from experiments.autoencoder.methods import METHODS
from experiments.autoencoder.picture import draw_curves
from experiments.autoencoder.plan import CRITERIA, RATES, SEEDS, Curves, choose, compared, tuning_losses
from experiments.autoencoder.presets import Preset
from experiments.autoencoder.training import EACH
from experiments.report import INTERVALS, versions
from experiments.tables import Table

REFERENCES = ("sgd", "kfac-plain")  # that the others are held against: the usual one, and the one of the thesis


def write_autoencoder_report(folder: Path, name: str, preset: Preset, methods: Sequence[str], curves: Curves) -> Path:
    """Writes the report and its picture into a folder, named after the preset; returns the report's path."""
    picture = folder / f"{name}.png"
    draw_curves(picture, name, methods, curves)
    tables = [make_losses(name, methods, criterion, curves).to_markdown() for criterion in CRITERIA]
    made_with = ", ".join(f"{what} {value}" for what, value in versions("torch").items())
    report = folder / f"{name}.md"
    report.write_text(
        f"# {name}\n\n{'-'.join(map(str, preset.widths))} with sigmoids, batches of {preset.batch_size}, one thread, "
        f"constant learning rates, damping {preset.damping:g}. Loss: squared error of an image, summed over its "
        f"pixels. {made_with}.\n\n"
        + "\n".join(
            (
                f"## After {preset.updates} updates\n\n{tables[0]}",
                f"## After {preset.seconds:g} seconds of a processor\n\n{tables[1]}",
                f"{INTERVALS}![Curves over updates and over time]({picture.name})\n",
                f"## Tuning\n\n{_tuning(name, methods, curves).to_markdown()}",
            )
        ),
        encoding="utf-8",
    )
    return report


def make_losses(preset: str, methods: Iterable[str], criterion: str, curves: Curves) -> Table:
    """Makes the table of a criterion, the lowest loss first."""
    own = {method: compared(preset, method, criterion, curves) for method in methods}
    losses = {method: [CRITERIA[criterion](preset, curve) for curve in of_method] for method, of_method in own.items()}
    rows = []
    for method in sorted(losses, key=lambda name: fmean(losses[name])):
        lr = choose(preset, method, criterion, curves)
        differences = [_above(losses[method], losses.get(other)) if other != method else "" for other in REFERENCES]
        time = median(1e3 * curve.seconds[-1] / curve.updates[-1] for curve in own[method])
        at_edge = " (an end of what was tried)" if lr in (min(RATES), max(RATES)) else ""
        rows.append([METHODS[method].label, f"{lr:g}{at_edge}", _mean(losses[method]), *differences, f"{time:.1f}"])
    others = (f"above {METHODS[other].label}" for other in REFERENCES)
    return Table(
        ("method", "lr", "training loss", *others, "ms an update"),
        rows,
        f"Mean over the last {EACH} batches within the limit, then over {len(SEEDS)} seeds ± half of its 95 % "
        "interval; differences are paired by seed.",
    )


def _mean(losses: Sequence[float]) -> str:
    """Returns a mean with its interval, or how many runs have no loss: they diverged, or were too slow."""
    without = sum(map(math.isinf, losses))
    return f"{without} of {len(losses)} have none" if without else Estimate.of(losses).format(2)


def _above(losses: Sequence[float], others: Sequence[float] | None) -> str:
    """Returns the difference paired by seed; nothing where there is none to be had."""
    if others is None or not all(map(math.isfinite, (*losses, *others))):
        return ""
    return Estimate.of([one - other for one, other in zip(losses, others, strict=True)]).format(2, "+")


def _tuning(preset: str, methods: Iterable[str], curves: Curves) -> Table:
    rows = []
    for method in methods:
        by_rate = zip(*(tuning_losses(preset, method, name, curves).values() for name in CRITERIA), strict=True)
        rows.append([METHODS[method].label, *(" / ".join(map(_loss, losses)) for losses in by_rate)])
    heading = ("method", *(f"{lr:g}" for lr in RATES))
    return Table(
        heading,
        rows,
        "Loss after the updates / after the seconds, one seed; - where there is none, as the run diverged.",
    )


def _loss(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "-"
