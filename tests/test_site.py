"""The site that `make docs` builds has every page and every public name, and is built without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sasgd_fused.local

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def navigation() -> list[str]:
    """Returns the pages that the start page lists, from docs/."""
    trees = re.findall(
        r"^```{toctree}\n(.*?)^```", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    entries = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    return [re.sub(".*<(.*)>", r"\1", entry) for entry in entries]


def test_the_navigation_names_every_page_once() -> None:
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")]
    listed = navigation()
    assert sorted(["index", *(page for page in listed if not page.startswith("../"))]) == sorted(pages)
    outside = [page for page in listed if page.startswith("../")]
    assert len(set(outside)) == len(outside)
    assert [page for page in outside if not (DOCS / f"{page}.md").is_file()] == []


@pytest.mark.parametrize("module", [sasgd_fused, sasgd_fused.local])
def test_the_reference_has_every_public_name_once(module: ModuleType) -> None:
    page = (DOCS / "api" / f"{module.__name__.rpartition('.')[2]}.md").read_text(encoding="utf-8")
    found = re.findall(r"^\.\. auto(?:class|function):: (\w+)(?:\(\))?$", page, re.MULTILINE)
    assert sorted(found) == sorted(module.__all__)


@pytest.mark.nightly
def test_the_site_is_made_without_a_warning(tmp_path: Path) -> None:
    """By the command itself, less its installation."""
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name)
    venv = f"VENV={sys.prefix}"
    command = ["make", "docs", venv, f"--old-file={sys.prefix}/.installed", "PIP_INSTALL=true", f"SITE={tmp_path}/site"]
    made = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert made.returncode == 0, made.stdout
    assert (tmp_path / "site/index.html").is_file()
    page = (tmp_path / "site/docs/api/sasgd_fused.html").read_text(encoding="utf-8")
    for name in sasgd_fused.__all__:
        assert f'id="sasgd_fused.{name}"' in page
