"""What the documents tell a reader to type works: targets, programs and their options, files, and Python."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from sasgd_fused.backends import BACKENDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md", *sorted(ROOT.glob("docs/*.md"))]
PROGRAMS = r"(?:\w+=\S+ )*(?:make|pytest|torchrun|(?:\.venv/bin/)?python) "
# A command stands indented, with two spaces before what is said of it, or between backticks.
COMMAND = re.compile(rf"^    ({PROGRAMS}.*?)(?:  .*)?$|`({PROGRAMS}[^`]+)`", re.MULTILINE)
FILES = re.compile(r"`((?:bench|csrc|docs|examples|experiments|sasgd_fused|tests|tools)/[^`\s:]*)`|\]\(([^)#:]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    found = [match for document in DOCUMENTS for match in COMMAND.findall(document.read_text(encoding="utf-8"))]
    return sorted({" ".join((indented or quoted).split()) for indented, quoted in found})


def of_module(command: str) -> tuple[str, list[str]] | None:
    """Returns the module that a command runs, with its arguments; None where it runs none."""
    words = command.split()
    place = words.index("-m") if "-m" in words else len(words)
    return (words[place + 1], words[place + 2 :]) if "python" in command and place < len(words) else None


def test_there_are_commands() -> None:
    assert len(commands()) > 20


def test_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    for command in commands():
        if command.startswith("make "):
            assert command.split()[1] in targets, command


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # by other tests, which does no harm here
@pytest.mark.parametrize("command", [command for command in commands() if of_module(command)])
def test_programs_are_there_and_take_these_options(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = of_module(command)
    assert found
    module, arguments = found
    options = [word.partition("=")[0].strip("[]") for word in arguments if word.strip("[").startswith("--")]
    if module.partition(".")[0] not in ("bench", "experiments", "tools"):
        assert importlib.util.find_spec(module), command
        return
    for name in ("matplotlib", "optuna", "sklearn", "scipy", "rich"):
        pytest.importorskip(name)
    subcommand = [word for word in arguments[:1] if module == "experiments" and re.fullmatch("[a-z][a-z-]*", word)]
    monkeypatch.setattr(sys, "argv", [module, *subcommand, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in options:
        assert option in text, f"{command}: no option {option}"


def test_files_in_commands_are_there() -> None:
    for command in commands():
        for word in command.split():
            path = word.strip('"').partition("::")[0]
            if path.startswith(("bench/", "csrc/", "docs/", "examples/", "tests/", "tools/")) and "NAME" not in path:
                assert (ROOT / path).exists(), f"{command}: {path}"


def test_files_are_there() -> None:
    for document in DOCUMENTS:
        for quoted, linked in FILES.findall(document.read_text(encoding="utf-8").replace("NAME", "*")):
            folder, path = (document.parent, linked) if linked else (ROOT, quoted.rstrip("/"))
            assert list(folder.glob(path)) if "*" in path else (folder / path).exists(), f"{document.name}: {path}"


def test_the_first_things_that_a_reader_types_run() -> None:
    for command in (["make", "help"], [sys.executable, "-m", "sasgd_fused.info"]):
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def network() -> nn.Sequential:
    layers = {"conv1": nn.Conv2d(3, 8, 3), "bn1": nn.BatchNorm2d(8), "relu": nn.ReLU(), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(layers, head=nn.Linear(8, 10)))


def with_python() -> list[Path]:
    """Returns the documents with Python in them, but those whose recipes tests/frameworks/test_recipes.py runs."""
    return [
        page for page in DOCUMENTS if page.name != "frameworks.md" and PYTHON.search(page.read_text(encoding="utf-8"))
    ]


# torch says it of itself when a page is the first to import torch.distributed.optim.
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("document", [pytest.param(page, id=page.name) for page in with_python()])
def test_the_python_in_documents_runs(document: Path) -> None:
    """One block after another, with a small network where a page makes none."""
    text = document.read_text(encoding="utf-8")
    model = network()
    names: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "resnet": network(),
        "images": torch.randn(8, 3, 3, 3),
        "labels": torch.arange(8),
        "targets": torch.arange(8),
    }
    with patch.dict(BACKENDS):
        for block in PYTHON.finditer(text):
            lines_before = "\n" * text.count("\n", 0, block.start(1))  # so that an error names the page's line
            exec(compile(lines_before + block[1], str(document), "exec"), names)
