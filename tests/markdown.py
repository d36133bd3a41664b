"""Tables in Markdown."""

from __future__ import annotations


def rows_below(text: str, heading: str) -> list[list[str]]:
    """Returns the cells of the first table below a heading, its own heading left out."""
    lines = iter(text[text.index(heading) :].splitlines())
    rows = [next(line for line in lines if line.startswith("|"))]
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(line)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
