"""The pictures of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from experiments.analysis import Comparison, Estimate, count_diverged, learning_rates

# The colours of Okabe and Ito, which colour-blind people can tell apart, and a dash for print in grey.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

Curve = NDArray[np.float64]


def draw_curves(path: Path, comparison: Comparison) -> None:
    """Draws training loss and test error over epochs in the layout of the paper's Figure 1, with 95 % intervals."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    drawn: dict[Axes, list[Curve]] = {loss_axes: [], error_axes: []}
    for (name, method), style in zip(comparison.methods.items(), _styles(), strict=False):
        runs = comparison.runs(name)
        diverged = count_diverged(runs)
        label = f"{method.label} ({diverged} of {len(runs)} diverged)" if diverged else method.label
        losses, errors = (np.array([getattr(run, field) for run in runs]) for field in ("train_loss", "test_error"))
        for axes, values in ((loss_axes, losses), (error_axes, errors)):
            epochs = np.arange(1, values.shape[1] + 1)
            estimates = [Estimate.of(column.tolist()) for column in values.T]
            mean, width = np.array([(entry.mean, entry.half_width) for entry in estimates]).T
            axes.plot(epochs, mean, **style, linewidth=1.6, label=label)
            if len(values) > 1:
                axes.fill_between(epochs, mean - width, mean + width, color=style["color"], alpha=0.15, linewidth=0)
            drawn[axes].append(values)
    _finish(loss_axes, drawn[loss_axes], "epoch", "training loss (cross-entropy), log scale")
    _finish(error_axes, drawn[error_axes], "epoch", "test error, %, log scale")
    _add_legend_and_title(figure, error_axes, comparison)
    figure.savefig(path, dpi=150)


def draw_learning_rates(path: Path, comparison: Comparison) -> None:
    """Draws the test error against the learning rate, and against its multiple of the unchanged one."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    absolute, relative = figure.subplots(1, 2, sharey=True)
    drawn = []
    for (name, method), style in zip(comparison.methods.items(), _styles(), strict=False):
        errors = learning_rates(comparison, name)
        factors = np.array(list(errors))
        means = np.array([error.mean for error in errors.values()])
        widths = np.nan_to_num([error.half_width for error in errors.values()])
        for axes, places in ((absolute, method.lr * factors), (relative, factors)):
            axes.errorbar(places, means, widths, **style, capsize=2, label=method.label)
            axes.plot(places, means, "o", color=style["color"], markersize=3)
        drawn.append(means)
    for axes in (absolute, relative):
        axes.set_xscale("log")
    _finish(absolute, drawn, "learning rate", "test error, %, log scale")
    _finish(relative, drawn, "multiple of the learning rate", "")
    _add_legend_and_title(figure, relative, comparison)
    figure.savefig(path, dpi=150)


def draw_layer_scales(path: Path, comparison: Comparison) -> None:
    """Draws s_b of every layer over the epochs, one panel for each method that scales layers."""
    names = scaling_methods(comparison)
    figure = Figure(figsize=(max(6.0, 3.6 * len(names)), 4.0), layout="constrained")
    colours = matplotlib.colormaps["viridis"]
    all_axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    drawn = []
    for axes, name in zip(all_axes, names, strict=True):
        scales = np.array([run.layer_scale for run in comparison.runs(name)])  # (seeds, epochs, layers)
        logarithms = np.log(scales, out=np.full_like(scales, np.nan), where=np.isfinite(scales) & (scales > 0))
        mean = np.exp(logarithms.mean(axis=0))
        for layer, curve in enumerate(mean.T):
            depth = layer / max(mean.shape[1] - 1, 1)
            axes.plot(np.arange(1, len(mean) + 1), curve, color=colours(0.9 * depth), linewidth=1.3)
        axes.set_title(comparison.methods[name].label, fontsize=10)
        drawn.append(mean)
    for axes in all_axes:
        _finish(axes, drawn, "epoch", "s_b, log scale" if axes is all_axes[0] else "")
    seeds = len(comparison.settings.seeds)
    figure.suptitle(
        f"{comparison.title}: scale of each layer's gradient, from the input (dark) to the head (light)"
        + (f",\ngeometric mean over {seeds} seeds" if seeds > 1 else ""),
        fontsize=11,
    )
    figure.savefig(path, dpi=150)


def scaling_methods(comparison: Comparison) -> list[str]:
    """Returns the methods that scale layers, keys in `METHODS`."""
    return [name for name in comparison.methods if all(run.layer_scale for run in comparison.runs(name))]


def _styles() -> Iterator[dict[str, Any]]:
    """Yields colours and dashes, of which there are 35 pairs."""
    return ({"color": colour, "linestyle": dash} for colour, dash in zip(cycle(COLOURS), cycle(DASHES), strict=False))


def _add_legend_and_title(figure: Figure, axes: Axes, comparison: Comparison) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(f"{comparison.title}: {comparison.over_seeds('and').rstrip('.')}", fontsize=11)


def _finish(axes: Axes, drawn: Sequence[Curve], across: str, up: str) -> None:
    """Sets scales and labels; the axis ends near the lowest and highest of what is drawn, and cuts wider intervals."""
    values = np.concatenate([entry.ravel() for entry in drawn])
    values = values[np.isfinite(values) & (values > 0)]
    axes.set_yscale("log", nonpositive="clip")
    low, high = (values.min(), values.max()) if len(values) else (1.0, 1.0)
    axes.set_ylim(low / 1.3, high * 1.3)
    if not len(values):
        axes.text(0.5, 0.5, "nothing finite", transform=axes.transAxes, ha="center")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if high < 10 * low else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
