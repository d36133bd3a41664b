"""The C++ core passes the tests of `tests/native`, also under the sanitizers, and these notice what they should."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from tests.helpers import REQUIRED
from tools.native_core import OPENMP, core_objects, find_compiler
from tools.ninja_build import Object, build

SOURCES = Path(__file__).parent / "native"
# Kept from run to run, so that only what has changed is compiled.
BUILD_DIR = Path(__file__).parents[1] / "build" / "tests"
VARIANTS = {
    "plain": [],  # as in the extension
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a program; the thread sanitizer stops at what it finds first, as the others do anyway."""
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)


def give_up(reason: str) -> NoReturn:
    """Skips the test, or fails it where the native backend is required."""
    if "native" in REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


def build_program(compiler: list[str], variant: str) -> Path:
    core = core_objects(compiler, VARIANTS[variant])
    step, kernels = core[0], core[1:]
    conversions = [
        replace(kernel, source=SOURCES / "conversions.cpp", output=kernel.output.replace("step_kernel", "conversions"))
        for kernel in kernels
    ]
    others = [
        Object(source, f"{source.stem}.o", step.command)
        for source in sorted(SOURCES.glob("*.cpp"))
        if source.name != "conversions.cpp"
    ]
    return build(
        [*core, *conversions, *others],
        output="native_tests",
        linker=[*compiler, *VARIANTS[variant]],
        link_flags=OPENMP,
        build_dir=BUILD_DIR / variant,
    )


def without_random_addresses() -> list[str]:
    """A prefix that keeps older thread sanitizers from dying of 'unexpected memory mapping' now and then."""
    prefix = ["setarch", platform.machine(), "-R"]
    works = shutil.which("setarch") and run([*prefix, "true"]).returncode == 0
    return prefix if works else []


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Builds the test program in a variant and returns the command that runs it."""
    compiler = find_compiler()
    if compiler is None:
        give_up("no C++ compiler was found (CXX is not set, no c++, g++ or clang++ is on PATH)")

    @cache
    def command(variant: str) -> list[str]:
        prefix = without_random_addresses() if variant == "thread" else []
        if flags := VARIANTS[variant]:
            folder = tmp_path_factory.mktemp(variant)
            source, trial = (folder / name for name in ("trial.cpp", "trial"))
            source.write_text("int main() {}\n")
            linked = run([*compiler, *flags, str(source), "-o", str(trial)])
            if linked.returncode != 0:
                give_up(f"{compiler[0]} cannot link with {' '.join(flags)}: {linked.stdout}")
            started = run([*prefix, str(trial)])
            assert started.returncode == 0, f"no program can run here with {' '.join(flags)}: {started.stdout}"
        return [*prefix, str(build_program(compiler, variant))]

    return command


@pytest.mark.parametrize(
    ("variant", "test"),
    [
        *[(variant, test) for variant in ("plain", "address") for test in ("conversions", "steps", "bits")],
        ("thread", "bits"),
    ],
)
def test_core(program: Callable[[str], list[str]], variant: str, test: str) -> None:
    done = run([*program(variant), test])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("variant", "bug", "complaints"),
    [
        ("plain", "nudged-weight", ["weight 0[5]: got", "1 failures"]),
        ("address", "overrun-tail", ["AddressSanitizer: heap-buffer-overflow"]),
        ("address", "overrun-vector", ["ERROR: AddressSanitizer", "READ of size"]),
        ("address", "bad-bool", ["csrc/cpu/step.cpp", "runtime error: load of value 2"]),
        ("thread", "shared-weights", ["ThreadSanitizer: data race", "step_kernel.cpp"]),
    ],
)
def test_bugs_are_noticed(program: Callable[[str], list[str]], variant: str, bug: str, complaints: list[str]) -> None:
    if bug == "shared-weights" and not OPENMP:
        pytest.skip("the kernels are compiled for one thread here")
    done = run([*program(variant), bug])
    assert done.returncode != 0
    for complaint in complaints:
        assert complaint in done.stdout
