"""How the tests' C++ programs are built and run, plain and under the sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest

from tools.native_core import OPENMP, find_compiler
from tools.ninja_build import Object, build

# An absent backend that is named there fails its tests, which else are skipped.
REQUIRED = tuple(filter(None, os.environ.get("SASGD_REQUIRE_BACKENDS", "").split(",")))

SOURCES = Path(__file__).parent
# Kept from run to run, so that only what has changed is compiled; a folder for each variant.
BUILD_DIR = SOURCES.parents[1] / "build" / "tests"
SANITIZERS = {
    "plain": [],  # as in the extension
    # Lines are all that the sanitizers name; more would double what is written.
    "address": ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
# Seconds until what a test has started counts as hung: over ten times what the slowest, a compiler, takes alone.
HUNG = 1200


def run(command: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a program, with environment variables besides those that are set.

    The thread sanitizer stops at what it finds first, as the others do anyway.
    """
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", **variables}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HUNG)


def give_up(reason: str, backend: str) -> NoReturn:
    """Skips the test, or fails it where the backend is required."""
    if backend in REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


def compiler_for(backend: str) -> list[str]:
    """Returns the C++ compiler's command, or ends a test that needs it."""
    compiler = find_compiler()
    if compiler is None:
        give_up("no C++ compiler was found (CXX is not set, no c++, g++ or clang++ is on PATH)", backend)
    return compiler


def build_program(name: str, objects: Sequence[Object], variant: str, backend: str) -> list[str]:
    """Builds a program in a variant and returns the command that runs it.

    Programs of a variant have those objects in common that have the same names: their commands must be the same too.
    """
    prefix = prefix_for(variant, backend)
    linker = [*compiler_for(backend), *SANITIZERS[variant]]
    program = build(objects, output=name, linker=linker, link_flags=OPENMP, build_dir=BUILD_DIR / variant)
    return [*prefix, str(program)]


@cache
def prefix_for(variant: str, backend: str) -> list[str]:
    """Returns what goes before the command of a program of that variant, or ends a test of one that cannot run here."""
    compiler = compiler_for(backend)
    prefix = _without_random_addresses() if variant == "thread" else []
    if flags := SANITIZERS[variant]:
        with TemporaryDirectory() as folder:
            source, trial = (Path(folder, name) for name in ("trial.cpp", "trial"))
            source.write_text("int main() {}\n", encoding="utf-8")
            linked = run([*compiler, *flags, str(source), "-o", str(trial)])
            if linked.returncode != 0:
                give_up(f"{compiler[0]} cannot link with {' '.join(flags)}: {linked.stdout}", backend)
            started = run([*prefix, str(trial)])
        assert started.returncode == 0, f"no program can run here with {' '.join(flags)}: {started.stdout}"
    return prefix


def _without_random_addresses() -> list[str]:
    """A prefix that keeps older thread sanitizers from dying of 'unexpected memory mapping' now and then."""
    prefix = ["setarch", platform.machine(), "-R"]
    works = shutil.which("setarch") and run([*prefix, "true"]).returncode == 0
    return prefix if works else []
