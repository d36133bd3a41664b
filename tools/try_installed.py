"""Tries the sasgd_fused that is installed in the Python that runs this file: `python tools/try_installed.py`.

It is run by its path and imports nothing of the sources, so that none of what it tries comes from them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
# What the tests import; the package is not among it.
COPIED = ("examples", "tests", "tools")
TESTS = (
    *("test_parity.py", "test_sgd_equivalence.py", "test_checkpoints.py", "test_errors.py", "test_info.py"),
    *("test_norms.py", "test_relative.py", "test_rounding.py", "test_schedulers.py"),
)


def main() -> int:
    """Returns the exit status of the first program that fails, else 0."""
    with TemporaryDirectory() as folder:
        for name in COPIED:
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        # An absent backend is a failure, so that skipped tests cannot pass for success.
        env = {**os.environ, "SASGD_REQUIRE_BACKENDS": "reference,foreach,native"}
        tests = [f"tests/product/{name}" for name in TESTS]
        for command in (["sasgd_fused.info"], ["pytest", "-q", "-p", "no:cacheprovider", *tests]):
            code = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=env).returncode
            if code != 0:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
