"""The CUDA compiler: where it is found, and how the sources in csrc/cuda/ are compiled."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.native_core import CSRC, FLAGS
from tools.ninja_build import Object

# Since then kernels take more than 4 KB of arguments.
OLDEST = (12, 1)

# A release's. Each runs on the later ones of its generation too: sm_80 on 86 and 89, sm_100 on 103, sm_120 on 121.
ARCHITECTURES = (75, 80, 90, 100, 120)

# What is compiled where nobody names any: each more costs a minute. Later GPUs compile the PTX of the first when they
# first run it; the older sm_75 has to be named.
DEFAULT_ARCHITECTURES = (80, 90)

# Where NVIDIA's installer puts it without touching PATH.
USUAL_PLACE = Path("/usr/local/cuda/bin/nvcc")

NO_NVCC = (
    "no nvcc was found (CUDA_HOME and CUDA_PATH are not set, none is on PATH, this Python has no package "
    f"nvidia-cuda-nvcc, and {USUAL_PLACE} does not exist)"
)

# Headers of each of the toolkit's parts that the sources need; light ones.
TRIAL = """
#include <cuda_runtime_api.h>
#include <nv/target>
__global__ void kernel() {}
"""


class UnusableToolkit(Exception):
    """There is a CUDA compiler, or one is named, and it cannot be used; the message says why."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA compiler that works, with what belongs to it.

    Attributes:
        nvcc: The compiler.
        version: Its major and minor version.
        includes: The folders of its headers, for sources that the C++ compiler compiles.
        runtime: The static library of the CUDA runtime.
        architectures: What it compiles for: `DEFAULT_ARCHITECTURES`, or what SASGD_CUDA_ARCHITECTURES says.
    """

    nvcc: Path
    version: tuple[int, int]
    includes: tuple[Path, ...]
    runtime: Path
    architectures: tuple[int, ...]

    @property
    def link_flags(self) -> list[str]:
        """What a library or program with CUDA objects is linked with; it needs no CUDA library when it runs."""
        return [str(self.runtime), "-lrt", "-lpthread", "-ldl"]


def find_nvcc() -> Path | None:
    """The first nvcc in CUDA_HOME, CUDA_PATH, PATH, this Python's packages and the usual place.

    Raises:
        UnusableToolkit: CUDA_HOME or CUDA_PATH is set and there is none in it.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            if found := shutil.which("nvcc", path=Path(home, "bin")):
                return Path(found)
            raise UnusableToolkit(f"{variable}={home} has no bin/nvcc that can be run")
    if found := shutil.which("nvcc"):
        return Path(found)
    # In pip's isolated builds too: the environment's packages cannot be imported there, but their files are found.
    packaged = [path for folder in site.getsitepackages() for path in Path(folder).glob("nvidia/cu*/bin/nvcc")]
    return next((path for path in [*packaged, USUAL_PLACE] if path.is_file()), None)


def find_toolkit(compiler: Sequence[str]) -> Toolkit | None:
    """The CUDA compiler of `find_nvcc`, once it has compiled a trial file; None where there is none.

    Args:
        compiler: The C++ compiler's command, which nvcc uses for the host's part.

    Raises:
        UnusableToolkit: nvcc is too old, incomplete, does not work with this C++ compiler, or cannot compile for what
            SASGD_CUDA_ARCHITECTURES names.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        return None
    release = re.search(r"release (\d+)\.(\d+)", _output([nvcc, "--version"]))
    if release is None:
        raise UnusableToolkit(f"{nvcc} --version names no release")
    version = int(release[1]), int(release[2])
    if version < OLDEST:
        raise UnusableToolkit(f"{nvcc} is of CUDA {release[1]}.{release[2]}, want {OLDEST[0]}.{OLDEST[1]} or newer")

    # nvcc may be a script or a link that stands elsewhere than the toolkit: its own words say where the parts are.
    with TemporaryDirectory() as folder:
        trial = Path(folder, "trial.cu")
        trial.write_text(TRIAL, encoding="utf-8")
        words = _output([nvcc, "--verbose", *_host_flags(compiler), "-c", trial, "-o", trial.with_suffix(".o")])
    includes = _folders(words, "INCLUDES") + _folders(words, "SYSTEM_INCLUDES")
    # In the packages from PyPI the library is not where nvcc looks for it.
    libraries = [path for folder in _folders(words, "LIBRARIES") for path in (folder, folder.with_name("lib"))]
    search = [f"-B{folder}" for folder in libraries]
    runtime = Path(_output([*compiler, *search, "-print-file-name=libcudart_static.a"]).strip())
    if not runtime.is_file():
        raise UnusableToolkit(f"{nvcc} comes without libcudart_static.a (looked in {', '.join(map(str, libraries))})")
    architectures = wanted_architectures()
    known = _output([nvcc, "-ccbin", compiler[0], "--list-gpu-code"]).split()
    if unknown := [f"sm_{number}" for number in architectures if f"sm_{number}" not in known]:
        raise UnusableToolkit(f"{nvcc} compiles for {' '.join(known)}, not for {' '.join(unknown)}")
    return Toolkit(nvcc, version, tuple(includes), runtime.resolve(), architectures)


def wanted_architectures() -> tuple[int, ...]:
    """Returns what SASGD_CUDA_ARCHITECTURES names, as in `80 90` or `all`; `DEFAULT_ARCHITECTURES` where it is not set.

    Raises:
        UnusableToolkit: It names something else.
    """
    named = os.environ.get("SASGD_CUDA_ARCHITECTURES", "").strip()
    if named == "all":
        return ARCHITECTURES
    if not all(word.isdecimal() for word in named.split()):
        raise UnusableToolkit(f"SASGD_CUDA_ARCHITECTURES: got {named!r}, want numbers, as in '80 90', or 'all'")
    return tuple(map(int, named.split())) or DEFAULT_ARCHITECTURES


def nvcc_command(toolkit: Toolkit, compiler: Sequence[str], architectures: Sequence[int]) -> list[str]:
    """The compiler with the project's flags, and PTX of the lowest architecture for those that are not in the list."""
    targets = [f"arch=compute_{number},code=sm_{number}" for number in architectures]
    lowest = min(architectures)
    targets.append(f"arch=compute_{lowest},code=compute_{lowest}")
    return [
        *(str(toolkit.nvcc), "-std=c++17", "-O3"),
        "-fmad=false",  # as -ffp-contract=off on the CPU
        *("--threads", "0"),  # compiles for as many architectures at once as there are cores
        *_host_flags([*compiler, *FLAGS]),
        *(word for target in targets for word in ("-gencode", target)),
    ]


def cuda_objects(toolkit: Toolkit, compiler: Sequence[str]) -> list[Object]:
    """The objects of the CUDA kernels, without the Python bindings, for the toolkit's architectures."""
    return [Object(CSRC / "cuda/step.cu", "cuda_step.o", nvcc_command(toolkit, compiler, toolkit.architectures))]


def _host_flags(compiler: Sequence[str]) -> list[str]:
    """How nvcc is told of the C++ compiler and its options."""
    return ["-ccbin", compiler[0], *(word for option in compiler[1:] for word in ("-Xcompiler", option))]


def _output(command: Sequence[str | Path]) -> str:
    """What a command prints on both streams.

    Raises:
        UnusableToolkit: It fails.
    """
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise UnusableToolkit(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        # Lines with this mark tell what nvcc does.
        complaint = "\n".join(line for line in done.stdout.splitlines() if not line.startswith("#$"))
        raise UnusableToolkit(f"{shlex.join(map(str, command))} failed:\n{complaint}")
    return done.stdout


def _folders(words: str, variable: str) -> list[Path]:
    """The folders in one of the variables that `nvcc --verbose` shows."""
    value = re.search(rf"^#\$ {variable}=(.*)$", words, re.MULTILINE)
    options = shlex.split(value[1]) if value else []
    folders = (option.removeprefix("-I").removeprefix("-L") for option in options if option != "-isystem")
    return [Path(folder).resolve() for folder in folders]
