"""Mistakes in csrc that the tests' programs must notice: all in one program, which makes the one that it is told to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from tests.kernels.native_programs import BUILD_DIR, SOURCES, run
from tools.native_core import CSRC
from tools.ninja_build import Object


@dataclass(frozen=True)
class Mistake:
    """A mistake in a source, and how it shows.

    Attributes:
        file: Below csrc.
        right: What stands there, once, after the mistakes before this one have been put in.
        wrong: What takes its place; MISTAKEN in it is whether the program makes the mistake.
        test: The program's test that notices.
        complaint: What it says.
        variant: Of the program that notices.
    """

    file: str
    right: str
    wrong: str
    test: str
    complaint: str
    variant: str = "plain"


def with_mistakes(objects: Iterable[Object], name: str, mistakes: Mapping[str, Mistake]) -> list[Object]:
    """Returns the objects as compiled from a copy of csrc, of that name, in which every mistake can be made."""
    csrc = _copy_of_csrc(BUILD_DIR / name, list(mistakes.values()))
    choice = ["-include", str(SOURCES / "native/mistakes.h")]
    made = []
    for item in objects:
        source = csrc / item.source.relative_to(CSRC) if item.source.is_relative_to(CSRC) else item.source
        command = [f"-I{csrc}" if word == f"-I{CSRC}" else word for word in item.command]
        made.append(Object(source, f"mistaken_{item.output}", [*command, *choice]))
    return made


def assert_noticed(program: Sequence[str], name: str, mistakes: Mapping[str, Mistake]) -> None:
    """Has the program make one of the mistakes, which its test must complain about."""
    mistake = mistakes[name]
    done = run([*program, mistake.test], SASGD_MISTAKE=str(list(mistakes).index(name)))
    assert done.returncode != 0
    assert mistake.complaint in done.stdout


def assert_right_otherwise(program: Sequence[str], mistakes: Iterable[Mistake]) -> None:
    """Runs all that notices mistakes without any."""
    done = run([*program, *sorted({mistake.test for mistake in mistakes})])
    assert done.returncode == 0, done.stdout


def _copy_of_csrc(folder: Path, mistakes: Sequence[Mistake]) -> Path:
    for path in CSRC.rglob("*"):
        if not path.is_file():
            continue
        name, text = path.relative_to(CSRC), path.read_text(encoding="utf-8")
        for number, mistake in enumerate(mistakes):
            if str(name) != mistake.file:
                continue
            assert text.count(mistake.right) == 1, f"{name} has {text.count(mistake.right)} times {mistake.right!r}"
            choice = f"sasgd_test::makes_mistake({number})"
            text = text.replace(mistake.right, mistake.wrong.replace("MISTAKEN", choice))
        _write(folder / name, text)
    return folder


def _write(path: Path, text: str) -> None:
    """Writes a file if it is not so already, since ninja goes by the time, and at once, since others may read it."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.replace(file.name, path)
