"""Mistakes that somebody might make in the Python sources are noticed by the tests of the first tier."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sasgd_fused
from tests.kernels.native_programs import HUNG
from tests.product.mistakes import MISTAKES, VARIABLE

pytestmark = pytest.mark.nightly
PACKAGE = Path(sasgd_fused.__file__).parent
HERE = Path(__file__).parent


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_noticed(name: str, tmp_path: Path) -> None:
    mistake = MISTAKES[name]
    source = (PACKAGE / f"{mistake.module.replace('.', '/')}.py").read_text(encoding="utf-8")
    times = source.count(mistake.right)
    assert times == 1, f"{mistake.module} has {times} times {mistake.right!r}"
    file = tmp_path / f"{mistake.module.rpartition('.')[2]}.py"
    file.write_text(source.replace(mistake.right, mistake.wrong), encoding="utf-8")
    test, _, chosen = mistake.test.partition(" ")
    command = [sys.executable, "-m", "pytest", "-p", "tests.product.mistakes", "-x", "-q", "-n", "0"]
    done = subprocess.run(
        [*command, str(HERE / test), "-k", chosen],
        cwd=HERE.parents[1],
        env={**os.environ, VARIABLE: f"sasgd_fused.{mistake.module}={file}"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=HUNG,
    )
    assert done.returncode == 1, done.stdout  # 1: a test failed, and nothing else went wrong
    assert " failed" in done.stdout
