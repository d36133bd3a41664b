"""The picture of the benchmark: training loss over updates and over time, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from experiments.analysis import Estimate
from experiments.autoencoder.methods import METHODS
from experiments.autoencoder.plan import CRITERIA, Curves, choose, compared
from experiments.autoencoder.presets import PRESETS
from experiments.autoencoder.training import Curve
from experiments.pictures import COLOURS

POINTS = 120  # of a curve over time
# One row of panels each; what is in both can be compared across them.
ROWS = {
    "first order": ("sgd-plain", "sgd", "centred-plain", "centred", "relative", "paper", "adamw"),
    "with matrices": ("sgd", "covariance-plain", "covariance", "covariance-max", "kfac-plain", "kfac", "muon"),
}


def draw_curves(path: Path, preset: str, methods: Sequence[str], curves: Curves) -> None:
    """Draws means over the seeds with 95 % intervals, each method at its rate for the criterion of the panel.

    A mean ends where a run has no loss: it diverged, or its first losses came later.
    """
    rows = {title: names for title, names in ROWS.items() if set(names) & set(methods)}
    figure = Figure(figsize=(12, 0.4 + 4.1 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 2, sharey=True, squeeze=False)
    drawn: list[float] = []
    for of_row, (title, names) in zip(panels, rows.items(), strict=True):
        for axes, criterion in zip(of_row, CRITERIA, strict=True):
            for name, colour in zip(names, COLOURS, strict=True):
                if name in methods:
                    label = f"{METHODS[name].label}, lr {choose(preset, name, criterion, curves):g}"
                    drawn += _draw(axes, preset, criterion, compared(preset, name, criterion, curves), colour, label)
            axes.set_title(f"{title}, {criterion}", fontsize=10)
            axes.set_xlabel("updates" if criterion == "updates" else "seconds of a processor")
            axes.legend(frameon=False, fontsize=8)
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        of_row[0].set_ylabel("training loss, log scale")
    finite = [value for value in drawn if math.isfinite(value)] or [1.0]
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylim(min(finite) / 1.1, max(finite) * 1.1)
    for axes in panels.flat:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=90)


def _draw(axes: Axes, preset: str, criterion: str, own: Sequence[Curve], colour: str, label: str) -> list[float]:
    """Draws the curves of a method, one for each seed, as their mean; returns it."""
    if criterion == "updates":
        places = [float(done) for done in own[0].updates if done <= PRESETS[preset].updates]
        losses = [[curve.after_updates(int(place)) for curve in own] for place in places]
    else:
        places = np.linspace(0, PRESETS[preset].seconds, POINTS).tolist()
        losses = [[curve.after_seconds(place) for curve in own] for place in places]
    estimates = [Estimate.of(of_place) for of_place in losses]
    means = [estimate.mean for estimate in estimates]
    mean = np.array(means)
    width = np.array([estimate.half_width for estimate in estimates])
    axes.plot(places, mean, color=colour, linewidth=1.6, label=label)
    axes.fill_between(places, mean - width, mean + width, color=colour, alpha=0.15, linewidth=0)
    return means
