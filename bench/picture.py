"""The picture: step time over parameters, tensors and dtype, a row of plots for each number of threads.

`python -m bench.picture bench/results/NAME.json` draws it anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.contenders import OTHERS, TORCH
from bench.measure import Result
from bench.rows import CURVES, FIELD, Curve

# Colours, dash and marker of ours, of torch's and of others'.
FAMILIES = (
    (("#0072B2", "#56B4E9", "#004D40", "#009E73", "#8BC34A"), "-", "o"),
    (("#000000", "#777777", "#B0B0B0"), "--", "s"),
    (("#D55E00", "#E69F00", "#CC79A7", "#882255", "#B89B00"), ":", "^"),
)


def draw_curves(path: Path, where: Mapping[str, object], results: Sequence[Result]) -> None:
    """Draws the medians of all curves with more than one point; no picture where there are none."""
    grid = []
    for threads in dict.fromkeys(result.threads for result in results):
        here = [result for result in results if result.threads == threads]
        times = {(result.row.contender, result.row.case, result.row.dtype): result.time_ms for result in here}
        known = {place[1:] for place in times}
        if curves := [curve for curve in CURVES if len(known & set(curve.points.values())) > 1]:
            grid.append((threads, times, curves))
    if not grid:
        return
    width = 2 + 6 * max(len(curves) for *_, curves in grid)
    figure = Figure(figsize=(width, 0.6 + 5 * len(grid)), layout="constrained")
    figure.suptitle(f"Time of an optimizer step: {where.get('device') or where['cpu']}, torch {where['torch']}")
    for part, (threads, times, curves) in zip(figure.subfigures(len(grid), squeeze=False)[:, 0], grid, strict=True):
        part.suptitle(f"{threads} thread{'s' if threads > 1 else ''}", fontsize=10)
        for axes, curve in zip(part.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
            _draw(axes, curve, times)
        # As in the first plot, where there are lines, and the slowest first.
        lines = {line.get_label(): line for axes in reversed(part.axes) for line in axes.get_lines()}
        handles = sorted((lines[name] for name in FIELD if name in lines), key=lambda line: -max(line.get_ydata()))
        part.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, curve: Curve, times: Mapping[tuple[str, str, str], float]) -> None:
    values = [value for value, point in curve.points.items() if any(place[1:] == point for place in times)]
    are_numbers = isinstance(values[0], int)
    names = [name for name in FIELD if any((name, *curve.points[value]) in times for value in values)]
    for index, name in enumerate(names):
        known = [value for value in values if (name, *curve.points[value]) in times]
        # Names have no order that a line could follow; side by side no marker hides another.
        beside = 0.7 * (index / max(len(names) - 1, 1) - 0.5)
        places = [value if isinstance(value, int) else values.index(value) + beside for value in known]
        colour, dash, marker = _style(name)
        heights = [times[(name, *curve.points[value])] for value in known]
        # The first are the fastest, and often as fast as each other: the next one's marker lies inside.
        size = max(9 - 2 * index, 5)
        line = dash if are_numbers else "none"
        axes.plot(places, heights, linestyle=line, color=colour, marker=marker, markersize=size, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda time, _: f"{time:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    if are_numbers:
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:,}" for value in values], rotation=20)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        for border in range(1, len(values)):
            axes.axvline(border - 0.5, color="#999999", linewidth=0.8)
    axes.set_xlabel(f"{curve.quantity}, {curve.rest}")
    axes.set_ylabel("time of a step, ms")
    axes.grid(axis="both" if are_numbers else "y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _style(name: str) -> tuple[str, str, str]:
    ours = [name for name in FIELD if name not in {**TORCH, **OTHERS}]
    for names, (colours, dash, marker) in zip((ours, list(TORCH), list(OTHERS)), FAMILIES, strict=True):
        if name in names:
            return colours[names.index(name)], dash, marker
    raise KeyError(name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.picture", description="Draws a measurement again.")
    parser.add_argument("figures", type=Path, metavar="FILE.json", help="what `python -m bench` has written")
    figures = parser.parse_args().figures
    stored = json.loads(figures.read_text())
    draw_curves(figures.with_suffix(".png"), stored["where"], [*map(Result.from_json, stored["results"])])
