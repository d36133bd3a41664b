"""What GitHub and PyPI read stands beside what is here: targets, versions, and what a wheel is built with."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import sasgd_fused

yaml: Any = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
PINS = re.findall(r"^([\w-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
# The newest stands first, that for Python 3.10 beside it.
CONSTRAINTS = dict(reversed(PINS))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def load(path: Path | str) -> Any:
    """Returns what a YAML file holds, numbers as they are written: 3.10 is no 3.1."""
    return yaml.load((ROOT / path).read_text(encoding="utf-8"), yaml.BaseLoader)


def commands(workflow: Path) -> list[str]:
    return [step["run"] for job in load(workflow)["jobs"].values() for step in job["steps"] if "run" in step]


def test_workflows_call_targets_that_are_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    called = [command for workflow in WORKFLOWS for command in commands(workflow)]
    made = [command.split()[1] for command in called if command.startswith("make ")]
    assert {"docs", "test", "test-all", "wheel", "sdist"} <= set(made) <= set(targets)
    others = {command for command in called if not command.startswith("make ")}
    # What a tag builds cannot run here; its parts can, and `make wheel` runs them.
    assert others == {
        ".ci/run",
        "python -m pip install -c constraints.txt cibuildwheel",
        "python -m cibuildwheel --output-dir dist",
    }
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_the_promised_versions_are_tested() -> None:
    (promise,) = re.findall(r'^dependencies = \["torch>=([\d.]+)"\]', PROJECT, re.MULTILINE)
    pythons = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    matrix = load(".github/workflows/tests.yml")["jobs"]["versions"]["strategy"]["matrix"]
    assert matrix == {"python": pythons, "torch": [f"{promise}.0", ""]}
    assert f'requires-python = ">={pythons[0]}"' in PROJECT
    (built,) = re.findall(r"^build = \[(.*)\]", PROJECT, re.MULTILINE)
    assert built == ", ".join(f'"cp{python.replace(".", "")}-*"' for python in pythons)


def test_another_torch_is_not_held_to_triton_and_cuda_of_this_one() -> None:
    target = "build/constraints-torch-2.6.0.txt"
    subprocess.run(["make", "--always-make", target], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    pins = (ROOT / target).read_text(encoding="utf-8").splitlines()
    assert "torch==2.6.0" in pins and f"numpy=={CONSTRAINTS['numpy']}" in " ".join(pins)
    assert not [pin for pin in pins if pin.startswith(("triton", "cuda", f"torch=={CONSTRAINTS['torch']}"))]


def test_wheels_are_built_with_the_compiler_that_the_extra_names() -> None:
    (requirement,) = re.findall(r'^nvcc = \["(.*)>=\d+"\]', PROJECT, re.MULTILINE)
    (before_all,) = re.findall(r'^before-all = "(.*)"', PROJECT, re.MULTILINE)
    assert f"'{requirement}'" in before_all


def test_hooks_have_the_versions_of_make_lint() -> None:
    hooks = {repo["repo"].rpartition("/")[2]: repo["rev"] for repo in load(".pre-commit-config.yaml")["repos"]}
    del hooks["actionlint"]
    programs = {"ruff-pre-commit": "v{ruff}", "mirrors-clang-format": "v{clang-format}"}
    programs["check-jsonschema"] = "{check-jsonschema}"
    assert hooks == {name: version.format(**CONSTRAINTS) for name, version in programs.items()}


def test_citation_names_the_paper_of_the_optimizer() -> None:
    (paper,) = load("CITATION.cff")["references"]
    authors = [author["family-names"] for author in paper["authors"]]
    source = sasgd_fused.ScaleAmendedSGD.__doc__ or ""
    assert f'{", ".join(authors)}, "{paper["title"]}", NeurIPS {paper["year"]}' in " ".join(source.split())


@pytest.mark.parametrize("form", ["bug", "question"])
def test_a_form_asks_for_what_can_be_answered(form: str) -> None:
    asked = load(f".github/ISSUE_TEMPLATE/{form}.yml")["body"]
    assert any(question["validations"]["required"] == "true" for question in asked if "validations" in question)
    text = " ".join(question["attributes"]["label"] for question in asked)
    assert form != "bug" or "`python -m sasgd_fused.info`" in text
