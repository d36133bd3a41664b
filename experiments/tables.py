"""The tables of a comparison, for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.table import Table as Terminal

from experiments.analysis import (
    MARGINS,
    NEAR,
    Comparison,
    count_diverged,
    count_near_best,
    epochs_to,
    learning_rates,
    summarise,
    thresholds,
)
from experiments.compare import TUNED, VARIATIONS


@dataclass(frozen=True)
class Table:
    """A table whose first column has names and whose others have numbers.

    Attributes:
        heading: one for each column; the terminal breaks its lines.
        rows: texts, as many in each.
        caption: what the numbers are.
    """

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str

    def to_markdown(self) -> str:
        """Returns the table in Markdown, its caption below it."""
        heading = [text.replace("\n", " ") for text in self.heading]
        rule = ["---", *["---:"] * (len(self.heading) - 1)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (heading, rule, *self.rows)]
        return "\n".join(lines) + f"\n\n{self.caption}\n"

    def to_terminal(self) -> Terminal:
        """Returns the table for a terminal of 80 columns."""
        table = Terminal(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
        table.caption, table.caption_justify = self.caption, "left"
        for index, heading in enumerate(self.heading):
            # A long name is folded, a number never.
            table.add_column(heading, justify="right" if index else "left", no_wrap=index > 0)
        for row in self.rows:
            table.add_row(*row)
        return table


def make_summary(comparison: Comparison, *, brief: bool = False) -> Table:
    """Says what every method came to in the unchanged setting.

    A brief table has no intervals of loss and time, so that a terminal of 80 columns has room for it.
    """
    rows = []
    for row in summarise(comparison):
        loss = f"{row.train_loss.mean:.4g}" if brief else row.train_loss.format(4)
        error = row.test_error.format(2) + _of_which_diverged(comparison, row.method)
        difference = row.difference.format(2, "+") if row.difference else ""
        step = f"{row.step_ms.mean:.3f}" if brief else row.step_ms.format(3)
        rows.append([row.label, f"{row.lr:.3g}", f"{row.weight_decay:.3g}", loss, error, difference, step])
    first = comparison.methods[comparison.first].label
    columns = "method", "lr", "weight\ndecay", "train\nloss", "test error,\n%", f"points\nabove {first}", "step,\nms"
    return Table(columns, rows, f"Last epoch, {comparison.over_seeds('± half of')}")


def make_speeds(comparison: Comparison) -> Table:
    """Says how many epochs every method needed to test errors that the first method ends near."""
    rows = []
    limits = thresholds(comparison)
    for name, method in comparison.methods.items():
        cells = [method.label]
        for limit in limits:
            epochs = median(epochs_to(run.test_error, limit) for run in comparison.runs(name))
            cells.append(f"{epochs:g}" if math.isfinite(epochs) else f"over {comparison.settings.epochs}")
        rows.append(cells)
    label = comparison.methods[comparison.first].label
    return Table(
        ("method", *(f"to {limit:.2f} %" for limit in limits)),
        rows,
        f"Epochs until the test error was for the first time at most that at which {label} ends in the mean, and "
        f"{', '.join(f'{points:g}' for points in MARGINS[1:])} points more; median over the seeds.",
    )


def make_learning_rates(comparison: Comparison) -> Table:
    """Shows the test error over multiples of the learning rate."""
    names = {VARIATIONS[name].lr: name for name in (TUNED, *comparison.varied("lr"))}
    rows = []
    for method in comparison.methods:
        errors = learning_rates(comparison, method)
        cells = [
            error.format(1) + _of_which_diverged(comparison, method, names[factor]) for factor, error in errors.items()
        ]
        rows.append([comparison.methods[method].label, *cells, f"{count_near_best(errors)} of {len(errors)}"])
    return Table(
        ("method", *(f"{factor:.2g} lr" for factor in sorted(names)), f"within {NEAR:g} point of its best"),
        rows,
        f"Test error in percent at multiples of the learning rate, {comparison.over_seeds('± half of')}",
    )


def make_changes(comparison: Comparison, variations: Sequence[str], headings: Sequence[str]) -> Table:
    """Shows the test error at variations of the setting, and how much it changes by them."""
    rows = []
    for name, method in comparison.methods.items():
        cells = [method.label, comparison.error(name).format(2)]
        for variation in variations:
            error = comparison.error(name, variation).format(2)
            cells.append(error + _of_which_diverged(comparison, name, variation))
            cells.append(comparison.difference((name, variation), (name, TUNED)).format(2, "+"))
        rows.append(cells)
    pairs = [text for heading in headings for text in (heading, "change")]
    return Table(
        ("method", "unchanged", *pairs),
        rows,
        f"Test error in percent and its change in points, paired by seed, {comparison.over_seeds('± half of')} "
        "Learning rate and weight decay are those of the unchanged setting.",
    )


def _of_which_diverged(comparison: Comparison, method: str, variation: str = TUNED) -> str:
    """Says how many runs diverged, if any: what their networks answer has an error too."""
    count = count_diverged(comparison.runs(method, variation))
    return f" ({count} of {len(comparison.settings.seeds)} diverged)" if count else ""
