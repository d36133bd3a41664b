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
PRODUCT = ("parity", "sgd_equivalence", "checkpoints", "errors", "info", "norms", "relative", "rounding", "schedulers")
TESTS = ["tests/kernels/test_native_module.py", *(f"tests/product/test_{promise}.py" for promise in PRODUCT)]


def main() -> int:
    """Returns the exit status of the first program that fails, else 0."""
    with TemporaryDirectory() as folder:
        for name in COPIED:
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        # An absent backend is a failure, so that skipped tests cannot pass for success.
        env = {**os.environ, "SASGD_REQUIRE_BACKENDS": "reference,foreach,native"}
        for command in (["sasgd_fused.info"], ["pytest", "-q", "-rNfE", "-p", "no:cacheprovider", *TESTS]):
            code = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=env).returncode
            if code != 0:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
