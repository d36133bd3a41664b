"""How the C++ in csrc/ is compiled, for the extension and for the native test programs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tools.ninja_build import Object

CSRC = Path(__file__).resolve().parents[1] / "csrc"

# Apple's clang comes without an OpenMP runtime: there the kernels run in one thread.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]

# No fused multiply-add unless it is written, so that every instruction set gives the same bits.
FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-math-errno"),
    *("-Wall", "-Wextra", "-Wno-psabi"),
    *OPENMP,
]

# step.cpp picks one of these when the program runs.
X86_ISAS = {
    "avx2": ["-mavx2", "-mf16c"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
        "-mprefer-vector-width=512",
        # GCC 12 and older warn of their own AVX-512 intrinsics (GCC bug 105593).
        "-Wno-maybe-uninitialized",
    ],
}


def find_compiler() -> list[str] | None:
    """The C++ compiler's command: `CXX` if set, else Python's own, else one of a usual name.

    Raises:
        FileNotFoundError: `CXX` is set and names no program.
    """
    if wanted := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(wanted[0]) is None:
            raise FileNotFoundError(f"CXX={os.environ['CXX']} names no program that can be run")
        return wanted
    pythons_own = shlex.split(sysconfig.get_config_var("CXX") or "")
    for command in (pythons_own, ["c++"], ["g++"], ["clang++"]):
        if command and shutil.which(command[0]):
            return command
    return None


def core_objects(compiler: Sequence[str], extra: Sequence[str] = ()) -> list[Object]:
    """The objects of the CPU kernels, without the Python bindings.

    Args:
        compiler: The compiler's command, as from `find_compiler`.
        extra: Flags put after the project's own, a sanitizer's for instance.

    Raises:
        subprocess.CalledProcessError: The compiler does not work.
    """
    isas = {"baseline": list[str]()}
    step_flags = []
    if _targets_x86_64(compiler):
        isas |= X86_ISAS
        step_flags = ["-DSASGD_HAVE_X86_VARIANTS=1"]
    step = Object(CSRC / "cpu/step.cpp", "step.o", [*compiler, *FLAGS, *step_flags, *extra])
    kernels = [
        Object(
            CSRC / "cpu/step_kernel.cpp",
            f"step_kernel_{isa}.o",
            [*compiler, *FLAGS, *flags, f"-DSASGD_ISA={isa}", *extra],
        )
        for isa, flags in isas.items()
    ]
    return [step, *kernels]


def _targets_x86_64(compiler: Sequence[str]) -> bool:
    """Asks the compiler, because it need not compile for the machine it runs on."""
    command = [*compiler, "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return "#define __x86_64__ 1" in macros.splitlines()
