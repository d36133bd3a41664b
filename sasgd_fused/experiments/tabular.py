"""Tables of text, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table as Terminal


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
        """The table in Markdown, its caption below it."""
        heading = [text.replace("\n", " ") for text in self.heading]
        rule = ["---", *["---:"] * (len(self.heading) - 1)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (heading, rule, *self.rows)]
        return "\n".join(lines) + f"\n\n{self.caption}\n"

    def to_terminal(self) -> Terminal:
        """The table for a terminal of 80 columns."""
        table = Terminal(
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=0,
            caption=self.caption,
            caption_justify="left",
        )
        for index, heading in enumerate(self.heading):
            # A long name is folded, a number never.
            table.add_column(heading, justify="right" if index else "left", no_wrap=index > 0)
        for row in self.rows:
            table.add_row(*row)
        return table
