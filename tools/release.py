"""`python -m tools.release VERSION`: what is missing for a release; it changes nothing. `make release` tags."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def complaints(root: Path, version: str) -> list[str]:
    """Returns what stands in the way of a release of the sources in `root`; nothing where it may be tagged.

    Args:
        root: a checkout.
        version: that of the release, three numbers.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        return [f"VERSION: got {version!r}, want three numbers, as in make release VERSION=1.2.3"]
    found = []
    if changes := _git(root, "status", "--porcelain"):
        found.append(f"the working tree is not clean:\n{changes}")
    if _git(root, "tag", "--list", f"v{version}"):
        found.append(f"the tag v{version} is there already")
    source = (root / "sasgd_fused/__init__.py").read_text(encoding="utf-8")
    if f'\n__version__ = "{version}"\n' not in source:
        found.append(f"sasgd_fused/__init__.py has another __version__ than {version}")
    sections = _sections((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    title = next((title for title in sections if title.startswith(f"[{version}]")), "")
    if not re.fullmatch(r"\[.*\] - \d{4}-\d{2}-\d{2}", title):
        found.append(f"CHANGELOG.md has no section ## [{version}] - YYYY-MM-DD")
    elif not _has_entries(sections[title]):
        found.append(f"CHANGELOG.md has no entries under {title}")
    if _has_entries(sections.get("[Unreleased]", "")):
        found.append(f"CHANGELOG.md has entries under [Unreleased], want them under [{version}]")
    return found


def _sections(changelog: str) -> dict[str, str]:
    """Returns what stands under each title of the second level."""
    parts = (part.partition("\n") for part in changelog.split("\n## ")[1:])
    return {title: text for title, _, text in parts}


def _has_entries(text: str) -> bool:
    return re.search("^- ", text, re.MULTILINE) is not None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.rstrip()


def main() -> int:
    """Prints the complaints; 1 where there are any."""
    found = complaints(ROOT, sys.argv[1] if len(sys.argv) == 2 else "")
    for complaint in found:
        print(complaint, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
