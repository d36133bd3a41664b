"""Tables of text."""

from __future__ import annotations

import html
from collections.abc import Sequence


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Returns lines of a table whose first column is names, whose last is remarks and whose others are numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *numbers, remarks in table:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False)]
        lines.append("  ".join([name.ljust(widths[0]), *cells, remarks]).rstrip())
    return "\n".join(lines)


def as_html(table: Sequence[Sequence[str]]) -> str:
    """Returns a table as HTML, which notebooks show; its first line is a heading."""
    lines: list[str] = []
    for line in table:
        tag = "td" if lines else "th"
        lines.append("".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in line))
    return "<table>\n" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table>"


def cell(value: object) -> str:
    """Returns a number with four digits, nothing for None, and anything else as it prints."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
