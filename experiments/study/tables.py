"""The tables of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from experiments.analysis import NEAR
from experiments.study.choice import Rates, Tuned
from experiments.study.methods import StudiedMethod
from experiments.study.summary import Excess
from experiments.tables import Table

STEPS = (-2, -1, 0, 1, 2)  # of a method's grid of rates, from the one for all settings


def make_excess_table(
    methods: Mapping[str, StudiedMethod],
    tuned: Mapping[str, Tuned],
    for_all: Mapping[str, Excess],
    for_each: Mapping[str, Excess],
    reference: str,
) -> Table:
    """Says how far every method is above a reference: with its rates for all settings, and with those for each."""
    rows = []
    for name in _from_the_best(for_all):
        method, chosen = methods[name], tuned[name].for_all
        assert chosen is not None
        rates = [f"{chosen.lr:.3g}{' (edge)' if at_edge(method, chosen.lr) else ''}", f"{chosen.weight_decay:.3g}"]
        rows.append([method.label, *rates, *_cells(for_all[name]), *_cells(for_each[name])])
    count = len(next(iter(for_all.values())).by_setting)
    columns = "mean", "worst", f"within {NEAR:g} point, of {count}"
    return Table(
        ("method", "lr", "weight decay", *columns, *(f"tuned for each: {column}" for column in columns)),
        rows,
        f"Points of test error above {reference}, paired by seed: with the method's one learning rate and weight decay "
        "for all settings, which the table says, then with those tuned for each. Means over the settings ± half of the "
        "95 % interval over these; at the worst setting, over the seeds. (edge): the lowest or highest rate tried.",
    )


def make_group_table(
    methods: Mapping[str, StudiedMethod], for_all: Mapping[str, Excess], groups: Mapping[str, Sequence[str]]
) -> Table:
    """Shows the mean excess of each method over the settings that vary the same; `groups` are their names."""
    rows = []
    for name in _from_the_best(for_all):
        excess = for_all[name].by_setting
        means = (fmean(excess[setting].mean for setting in group) for group in groups.values())
        rows.append([methods[name].label, *(f"{mean:+.2f}" for mean in means)])
    return Table(
        ("method", *(f"{varied} ({len(group)})" for varied, group in groups.items())),
        rows,
        "Points of test error above the best tuned method of each setting, each method with its one learning rate and "
        "weight decay: means over the settings by what they vary, in brackets how many these are.",
    )


def make_sharpness_table(
    methods: Mapping[str, StudiedMethod],
    tuned: Mapping[str, Tuned],
    above: Mapping[str, Mapping[Rates, Mapping[str, float]]],
) -> Table:
    """Says what rates beside the one for all settings would have given in tuning."""
    rows, count = [], 0
    for name, method in methods.items():
        chosen, rates = tuned[name].for_all, sorted(method.rates)
        assert chosen is not None
        cells = []
        for step in STEPS:
            place = rates.index(chosen.lr) + step
            found = above[name][Rates(rates[place], chosen.weight_decay)] if 0 <= place < len(rates) else {}
            cells.append(f"{fmean(found.values()):+.1f} / {max(found.values()):+.1f}" if found else "")
        settings = above[name][chosen]
        count = len(settings)
        edges = sum(at_edge(method, tuned[name].for_each[setting].lr) for setting in settings)
        rows.append([method.label, f"{chosen.lr:.3g}", *cells, str(edges)])
    heading = [f"{step:+d}" if step else "the one" for step in STEPS]
    return Table(
        ("method", "lr", *heading, "own best at the edge"),
        rows,
        f"Mean and worst tuning error of {count} settings at the one rate and at those some steps of the method's grid "
        "below and above it, in points above the lowest tuning error of any method at a setting; the weight decay is "
        "the method's one. The last column counts the settings whose best rate is the lowest or highest tried.",
    )


def make_progress_table(methods: Mapping[str, StudiedMethod], done: Mapping[str, Sequence[str]]) -> Table:
    """Says how many of the planned runs of each method are done."""
    rows = [[method.label, *done[name]] for name, method in methods.items()]
    caption = "Runs that are done, of those planned. Those for evaluation are planned as far as the tuning is done."
    return Table(("method", "tuning", "evaluation"), rows, caption)


def at_edge(method: StudiedMethod, lr: float) -> bool:
    """Whether a rate is the lowest or highest that a method is tried with."""
    return lr in (min(method.rates), max(method.rates))


def _from_the_best(excesses: Mapping[str, Excess]) -> list[str]:
    return sorted(excesses, key=lambda name: excesses[name].mean.mean)


def _cells(excess: Excess) -> list[str]:
    worst = excess.by_setting[excess.worst]
    return [excess.mean.format(2, "+"), f"{worst.format(2, '+')}, {excess.worst}", str(excess.near)]
