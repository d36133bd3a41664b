"""The picture of the benchmark: training loss over updates and over time, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from experiments.analysis import Estimate
from experiments.autoencoder.methods import METHODS
from experiments.autoencoder.plan import Curves, choose, compared
from experiments.autoencoder.presets import PRESETS
from experiments.pictures import COLOURS

POINTS = 120  # of a curve over time
# One row of panels each; what is in both can be compared across them.
ROWS = {
    "first order": ("sgd-plain", "sgd", "centred-plain", "centred", "relative", "paper", "adamw"),
    "with matrices": ("sgd", "covariance-plain", "covariance", "covariance-max", "kfac-plain", "kfac", "muon"),
}


def draw_curves(path: Path, preset: str, methods: Sequence[str], curves: Curves) -> None:
    """Draws means over the seeds with 95 % intervals, each method at its rate for the criterion of the panel."""
    shape = PRESETS[preset]
    figure = Figure(figsize=(12, 8.6), layout="constrained")
    for panels, (title, names) in zip(figure.subplots(2, 2, sharey=True), ROWS.items(), strict=True):
        drawn = [(name, colour) for name, colour in zip(names, COLOURS, strict=True) if name in methods]
        for axes, criterion in zip(panels, ("updates", "seconds"), strict=True):
            for name, colour in drawn:
                own = compared(preset, name, criterion, curves)
                label = f"{METHODS[name].label}, lr {choose(preset, name, criterion, curves):g}"
                if criterion == "updates":
                    places = np.array([done for done in own[0].updates if done <= shape.updates])
                    losses = [[curve.after_updates(place) for curve in own] for place in places]
                else:
                    first = max(curve.seconds[0] for curve in own)
                    places = np.linspace(first, max(shape.seconds, first), POINTS)
                    losses = [[curve.after_seconds(place) for curve in own] for place in places]
                _draw(axes, places, losses, colour, label)
            axes.set_title(f"{title}, {criterion}", fontsize=10)
            axes.set_xlabel("updates" if criterion == "updates" else "seconds of a processor")
            axes.legend(frameon=False, fontsize=8)
        panels[0].set_ylabel("training loss, log scale")
    figure.savefig(path, dpi=90)


def _draw(axes: Axes, places: NDArray[np.float64], losses: list[list[float]], colour: str, label: str) -> None:
    estimates = [Estimate.of(of_place) for of_place in losses]
    mean, width = np.array([(estimate.mean, estimate.half_width) for estimate in estimates]).T
    axes.plot(places, mean, color=colour, linewidth=1.6, label=label)
    axes.fill_between(places, mean - width, mean + width, color=colour, alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylim(8, 120)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
