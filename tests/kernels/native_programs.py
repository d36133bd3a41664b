"""How the tests' C++ is built and run: the CPU core, and the CUDA kernels under their emulation."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest

from tools.cuda import UnusableToolkit, find_toolkit
from tools.native_core import CSRC, FLAGS, find_compiler
from tools.ninja_build import Object

# An absent backend that is named there fails its tests, which else are skipped.
REQUIRED = tuple(filter(None, os.environ.get("SASGD_REQUIRE_BACKENDS", "").split(",")))

SOURCES = Path(__file__).parent
# Kept from run to run, so that only what has changed is compiled.
BUILD_DIR = SOURCES.parents[1] / "build" / "tests"
SANITIZERS = {
    "plain": [],  # as in the extension
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
}
# The emulation is compiled without a sanitizer, and tells it which stack it is on.
_TOLD = {"plain": [], "address": ["-DSASGD_ADDRESS_SANITIZER"], "thread": ["-DSASGD_THREAD_SANITIZER"]}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a program; the thread sanitizer stops at what it finds first, as the others do anyway."""
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)


def give_up(reason: str, backend: str) -> NoReturn:
    """Skips the test, or fails it where the backend is required."""
    if backend in REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


def compiler_for(backend: str) -> list[str]:
    """The C++ compiler's command, or the end of a test that needs it."""
    compiler = find_compiler()
    if compiler is None:
        give_up("no C++ compiler was found (CXX is not set, no c++, g++ or clang++ is on PATH)", backend)
    return compiler


@cache
def prefix_for(variant: str, backend: str) -> list[str]:
    """What goes before the command of a program of that variant; ends a test where there can be no such program."""
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


@cache
def why_not_emulated() -> str | None:
    """Why the CUDA kernels cannot be compiled for the CPU here, or None if they can."""
    compiler = find_compiler()
    if compiler is None:
        return "no C++ compiler was found"
    try:
        toolkit = find_toolkit(compiler)
    except UnusableToolkit as error:
        return str(error)
    return None if toolkit else "no nvcc was found, whose headers the CUDA kernels include"


@cache
def emulated_command(csrc: Path = CSRC) -> list[str]:
    """Compiles C++ that includes the CUDA kernels' headers, for the CPU."""
    compiler = find_compiler()
    assert compiler
    toolkit = find_toolkit(compiler)
    assert toolkit
    system = [word for folder in toolkit.includes for word in ("-isystem", str(folder))]
    # -O1, because it compiles in a third of the time.
    own = ["-O1", "-DSASGD_EMULATED_CUDA", f"-I{SOURCES / 'emulation'}", f"-I{csrc}", "-Wno-unknown-pragmas"]
    return [*compiler, *FLAGS, *own, *system]


def emulation_objects(variant: str = "plain") -> list[Object]:
    """The emulation itself."""
    command = [*emulated_command(), *_TOLD[variant]]
    sources = [path for path in sorted((SOURCES / "emulation").glob("*.cpp")) if path.stem != "module"]
    return [Object(path, f"emulation_{path.stem}.o", command) for path in sources]


def emulated_step(variant: str = "plain", csrc: Path = CSRC) -> Object:
    """The kernels and their launches."""
    command = [*emulated_command(csrc), *_TOLD[variant], *SANITIZERS[variant], "-x", "c++"]
    return Object(csrc / "cuda/step.cu", "cuda_step.o", command)


def emulated_tests(variant: str, csrc: Path = CSRC) -> list[Object]:
    """The programs' own sources, in tests/native."""
    command = [*emulated_command(csrc), *_TOLD[variant], *SANITIZERS[variant]]
    sources = [*sorted((SOURCES / "native/cuda").glob("*.cpp")), SOURCES / "native/double_loop.cpp"]
    return [Object(path, f"{path.stem}.o", command) for path in sources]


def renamed(item: Object, prefix: str) -> Object:
    """The same object under another name."""
    return replace(item, output=f"{prefix}_{item.output}")
