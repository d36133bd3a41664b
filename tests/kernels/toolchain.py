"""The CUDA compiler for the tests that need it, and scripts that stand in for a compiler."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests.kernels.native_programs import compiler_for, give_up
from tools.cuda import NO_NVCC, Toolkit, UnusableToolkit, find_toolkit


def cuda_toolkit() -> Toolkit:
    """Returns the CUDA compiler, or ends a test that needs it."""
    found = toolkit_or_reason(tuple(compiler_for("cuda")))
    if isinstance(found, str):
        give_up(found, "cuda")
    return found


@cache
def toolkit_or_reason(compiler: tuple[str, ...]) -> Toolkit | str:
    """Returns what CUDA is compiled with, or why nothing is; a trial takes most of a second."""
    try:
        return find_toolkit(compiler) or NO_NVCC
    except UnusableToolkit as error:
        return str(error)


def write_script(path: Path, *lines: str) -> Path:
    """Writes a shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n", encoding="utf-8")
    path.chmod(0o755)
    return path
