"""The picture: learning curves in the layout of the paper's Figure 1, with a band over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from sasgd_fused.experiments.methods import Method
from sasgd_fused.experiments.train import RunResult

# The colours of Okabe and Ito, which colour-blind people can tell apart, and a dash for print in grey.
STYLES = (("#000000", "-"), ("#D55E00", "--"), ("#0072B2", "-."), ("#009E73", ":"), ("#CC79A7", "-"))


def draw_curves(path: Path, title: str, results: Sequence[RunResult], methods: Mapping[str, Method]) -> None:
    """Draws training loss and test error over epochs, mean and ± one standard deviation over seeds."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    for index, (name, method) in enumerate(methods.items()):
        colour, dash = STYLES[index % len(STYLES)]
        runs = [result for result in results if result.method == name]
        _draw_band(loss_axes, [run.train_loss for run in runs], colour, dash, method.label)
        _draw_band(error_axes, [run.test_error for run in runs], colour, dash, method.label)
    _label(loss_axes, "training loss (cross-entropy)")
    _label(error_axes, "test error, %")
    error_axes.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


def _draw_band(axes: Axes, curves: Sequence[Sequence[float]], colour: str, dash: str, label: str) -> None:
    values = np.array(curves)
    epochs = np.arange(1, values.shape[1] + 1)
    mean = values.mean(axis=0)
    axes.plot(epochs, mean, dash, color=colour, linewidth=1.8, label=label)
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        # Not below the lowest run: mean - std can be negative, which a logarithmic axis cannot show.
        low = np.maximum(mean - std, values.min(axis=0))
        axes.fill_between(epochs, low, mean + std, color=colour, alpha=0.18, linewidth=0)


def _label(axes: Axes, quantity: str) -> None:
    axes.set_yscale("log", nonpositive="clip")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{quantity}, log scale")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
