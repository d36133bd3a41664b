"""The picture: step time over parameters, tensors and dtype, a row for each number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.contenders import OTHERS, TORCH
from bench.measure import Result
from bench.rows import CURVES, FIELD, Curve

# The colours of Okabe and Ito, which colour-blind people can tell apart; families differ in dash and marker.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_curves(path: Path, title: str, results: Sequence[Result]) -> None:
    """Draw what was measured of the curves; medians, on logarithmic axes."""
    threads = list(dict.fromkeys(result.threads for result in results))
    figure = Figure(figsize=(14, 1.2 + 4.2 * len(threads)), layout="constrained")
    grid = figure.subplots(len(threads), len(CURVES), squeeze=False)
    for row, count in zip(grid, threads, strict=True):
        here = [result for result in results if result.threads == count]
        for axes, curve in zip(row, CURVES, strict=True):
            _draw(axes, curve, here)
        row[0].set_ylabel(f"ms per step, {count} thread{'s' if count > 1 else ''}")
    # Those of the first curve, if possible: over dtypes there are no lines.
    lines = {line.get_label(): line for axes in reversed(list(grid.flat)) for line in axes.get_lines()}
    names = [name for name in FIELD if name in lines]
    figure.legend([lines[name] for name in names], names, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, curve: Curve, results: Sequence[Result]) -> None:
    times = {(result.row.contender, result.row.case, result.row.dtype): result.time_ms for result in results}
    values = list(curve.points)
    categories = isinstance(values[0], str)
    points = list(zip(range(len(values)) if categories else values, curve.points.values(), strict=True))
    for name in FIELD:
        known = [(place, times[name, case, dtype]) for place, (case, dtype) in points if (name, case, dtype) in times]
        if known:
            colour, dash, marker = _style(name)
            line = "none" if categories else dash
            axes.plot(*zip(*known, strict=True), linestyle=line, marker=marker, markersize=5, color=colour, label=name)
    if categories:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
    else:
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(curve.quantity)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _style(name: str) -> tuple[str, str, str]:
    families = ([name for name in FIELD if name not in {**TORCH, **OTHERS}], list(TORCH), list(OTHERS))
    family = next(index for index, names in enumerate(families) if name in names)
    return COLOURS[families[family].index(name)], ("-", "--", ":")[family], "os^"[family]
