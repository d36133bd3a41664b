"""Imports in the package run one way: down the picture in CONTRIBUTING.md, where every module has a line."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "sasgd_fused"


def picture(document: str) -> dict[str, int]:
    """Returns the line in which each file stands in the picture, counted from the top.

    The picture is what is indented below the line with the package's folder. A line begins with files; two spaces or
    more separate them from what is said of them, which goes on in lines that are indented further.
    """
    lines = document.splitlines()
    lines = lines[lines.index(f"    {PACKAGE}/") + 1 :]
    floors: dict[str, int] = {}
    for number, line in enumerate(lines):
        if not line.startswith(" " * 6):
            break
        if line[6] != " ":
            for file in line.strip().partition("  ")[0].split():
                assert file.endswith(".py"), f"{file} in {line!r}: want names of files, then two spaces"
                assert file not in floors, f"{file} stands in two lines"
                floors[file] = number
    return floors


def sources() -> dict[str, str]:
    """Returns the text of each file of the package."""
    folder = ROOT / PACKAGE
    return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in folder.rglob("*.py")}


def imported(text: str, files: Mapping[str, object]) -> Iterator[str]:
    """Yields the files of the package that a module imports anywhere in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "want absolute imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == PACKAGE and parts[:1] != ["_C"]:
                yield file_of(parts, files)


def file_of(parts: list[str], files: Mapping[str, object]) -> str:
    """Returns the file that a dotted name comes from: that of a module, or of a package that has the last part."""
    for path in ("/".join(parts), "/".join(parts[:-1])):
        for file in (f"{path}.py", f"{path}/__init__.py".lstrip("/")):
            if file in files:
                return file
    raise AssertionError(f"no file for {'.'.join(parts)}")


def upward(floors: Mapping[str, int], texts: Mapping[str, str]) -> list[str]:
    """Returns the imports that do not go down, which every circle has one of."""
    return [
        f"{file} -> {other}"
        for file, text in sorted(texts.items())
        for other in imported(text, texts)
        if floors[other] <= floors[file]
    ]


def test_every_module_has_a_line() -> None:
    assert sorted(picture((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) == sorted(
        file for file, text in sources().items() if text
    )


def test_imports_go_down() -> None:
    texts = {file: text for file, text in sources().items() if text}
    assert upward(picture((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")), texts) == []


@pytest.mark.parametrize(
    "text",
    [
        "from sasgd_fused.top import a",
        "from sasgd_fused import top",
        "import sasgd_fused.top",
        "import sasgd_fused",
        "def f():\n    from sasgd_fused.beside import b",
    ],
)
def test_what_goes_up_or_aside_is_found(text: str) -> None:
    lines = ["    sasgd_fused/", "      __init__.py top.py  1", "        more", "      low.py beside.py  2", "    x/"]
    floors = picture("\n".join(lines))
    texts = {"__init__.py": "", "top.py": "import sasgd_fused.low\nimport os", "beside.py": "", "low.py": text}
    (found,) = upward(floors, texts)
    assert found.startswith("low.py -> ")
