"""`make release` tags nothing whose tree, version or changelog is not ready."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools.release import complaints

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-31\n\n### Added\n\n- A thing.\n\n## [1.2.2]\n"


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that is ready for 1.2.3."""
    (tmp_path / "sasgd_fused").mkdir()
    (tmp_path / "sasgd_fused/__init__.py").write_text('"""A package."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "All")
    return tmp_path


def test_what_is_ready_has_no_complaints(checkout: Path) -> None:
    assert complaints(checkout, "1.2.3") == []


@pytest.mark.parametrize("version", ["", "1.2", "v1.2.3", "1.2.3rc1", "1.2.3\n"])
def test_what_is_no_version_is_refused(checkout: Path, version: str) -> None:
    assert complaints(checkout, version) == [
        f"VERSION: got {version!r}, want three numbers, as in make release VERSION=1.2.3"
    ]


@pytest.mark.parametrize("file", ["CHANGELOG.md", "new.txt"])
def test_a_dirty_tree_is_refused(checkout: Path, file: str) -> None:
    with (checkout / file).open("a") as stream:
        stream.write("\n")
    (complaint,) = complaints(checkout, "1.2.3")
    assert complaint.startswith("the working tree is not clean:\n")
    assert file in complaint


def test_a_version_that_is_tagged_is_refused(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.3")
    assert complaints(checkout, "1.2.3") == ["the tag v1.2.3 is there already"]


def test_another_version_than_the_package_has_is_refused(checkout: Path) -> None:
    found = complaints(checkout, "1.2.2")
    assert found[0] == "sasgd_fused/__init__.py has another __version__ than 1.2.2"


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("[1.2.3]", "[1.2.4]", "has no section ## [1.2.3] - YYYY-MM-DD"),
        (" - 2026-01-31", "", "has no section ## [1.2.3] - YYYY-MM-DD"),
        ("- A thing.\n", "", "has no entries under [1.2.3] - 2026-01-31"),
        ("[Unreleased]\n", "[Unreleased]\n\n- One more.\n", "has entries under [Unreleased], want them under [1.2.3]"),
    ],
)
def test_a_changelog_that_does_not_tell_of_it_is_refused(
    checkout: Path, before: str, after: str, complaint: str
) -> None:
    assert CHANGELOG.count(before) == 1
    (checkout / "CHANGELOG.md").write_text(CHANGELOG.replace(before, after))
    git(checkout, "commit", "--quiet", "--all", "--message", "Change")
    assert complaints(checkout, "1.2.3") == [f"CHANGELOG.md {complaint}"]
