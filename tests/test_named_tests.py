"""Tests that the documents name are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tests_that_documents_name_are_there() -> None:
    files = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for text in files for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        named = re.findall(r"`(test_\w+)`", document.read_text(encoding="utf-8"))
        missing = [name for name in named if name not in defined]
        assert not missing, f"{document.name}: {missing}"
