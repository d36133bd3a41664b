"""The picture of the study: whether the lowest errors of all settings stand in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from experiments.pictures import COLOURS, DASHES
from experiments.study.choice import Rates, Tuned
from experiments.study.methods import StudiedMethod
from experiments.study.settings import Setting

CLIP = 20.0  # points above the best, beyond which a curve is not followed
COUNTS = -1.2  # where below zero the counts stand
COLUMNS = 4


def draw_rates(
    path: Path,
    settings: Mapping[str, Setting],
    methods: Mapping[str, StudiedMethod],
    tuned: Mapping[str, Tuned],
    above: Mapping[str, Mapping[Rates, Mapping[str, float]]],
) -> None:
    """Draws tuning errors against the learning rate, one panel for each method and one curve for each setting.

    Below each rate stands how many settings have their lowest error there.

    Args:
        path: of the picture.
        settings: the curves; what they vary gives them their colour.
        methods: the panels.
        tuned: their rates for all settings; the weight decay of the curves is the one of these.
        above: the errors, in points above the lowest of each setting, by method, rates and setting.
    """
    rows = math.ceil(len(methods) / COLUMNS)
    figure = Figure(figsize=(12, 0.9 + 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, math.ceil(len(methods) / rows), sharey=True, squeeze=False).ravel()
    questions = dict.fromkeys(setting.varies for setting in settings.values())
    styles: dict[str, tuple[str, Any]] = dict(
        zip(questions, zip(cycle(COLOURS), cycle(DASHES), strict=False), strict=False)
    )
    decades = max(math.log10(max(method.rates) / min(method.rates)) for method in methods.values())
    for axes, (name, method) in zip(panels, methods.items(), strict=False):
        chosen = tuned[name].for_all
        assert chosen is not None
        axes.vlines(chosen.lr, 0, CLIP, color="#999999", linewidth=2.5, alpha=0.6)
        rates = sorted(method.rates)
        lowest = []
        for setting in settings.values():
            colour, dash = styles[setting.varies]
            errors = [above[name][Rates(lr, chosen.weight_decay)][setting.name] for lr in rates]
            lowest.append(rates[errors.index(min(errors))])
            _draw_curve(axes, rates, errors, colour, dash)
        for lr in set(lowest):
            axes.text(lr, COUNTS, str(lowest.count(lr)), ha="center", va="center", fontsize=8)
        axes.set_title(f"{method.label}: {chosen.lr:.3g}", fontsize=9)
        _set_scales(axes, rates, decades)
    for axes in panels[len(methods) :]:
        axes.remove()
    handles = [Line2D([], [], color=colour, linestyle=dash, label=name) for name, (colour, dash) in styles.items()]
    handles.append(Line2D([], [], color="black", linestyle="", marker="^", markersize=4, label=f"above {CLIP:g}"))
    handles.append(Line2D([], [], color="#999999", linewidth=2.5, alpha=0.6, label="the one rate for all"))
    figure.legend(handles=handles, loc="outside upper center", ncols=8, frameon=False, fontsize=8)
    figure.supxlabel("learning rate; the numbers say how many settings have their lowest error there", fontsize=10)
    figure.supylabel("test error in tuning,\npoints above the best of all methods", fontsize=10)
    figure.savefig(path, dpi=110)


def _draw_curve(axes: Axes, rates: list[float], errors: list[float], colour: str, dash: Any) -> None:
    clipped = [min(error, CLIP) for error in errors]
    axes.plot(rates, clipped, color=colour, linestyle=dash, linewidth=0.8, alpha=0.8)
    for rate, error in zip(rates, errors, strict=True):
        if error > CLIP:
            axes.plot(rate, CLIP, "^", color=colour, markersize=3.5, clip_on=False)


def _set_scales(axes: Axes, rates: list[float], decades: float) -> None:
    """Gives every panel as many decades, so that curves of one steepness look alike."""
    axes.set_xscale("log")
    middle, half = math.sqrt(rates[0] * rates[-1]), 10 ** (decades / 2 + 0.1)
    axes.set_xlim(middle / half, middle * half)
    axes.set_ylim(2 * COUNTS, CLIP)
    axes.set_yticks(range(0, int(CLIP) + 1, 5))
    axes.axhline(0, color="black", linewidth=0.6)
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
