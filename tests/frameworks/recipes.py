"""The recipes of docs/frameworks.md, by their headings."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/frameworks.md"
SHARED = "What all recipes share"


def read_recipes() -> dict[str, str]:
    """Returns the Python of each section that has some."""
    found = {}
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        if blocks := re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            found[title] = "\n".join(blocks)
    return found
