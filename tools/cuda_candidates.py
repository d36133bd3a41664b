"""The candidates of the CUDA kernels (csrc/cuda/candidates.h): what each should bring, and a module of each.

docs/cuda.md says what they are. Nothing of this is in the package: the extension is built without them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.cuda import NO_NVCC, Toolkit, UnusableToolkit, find_toolkit, nvcc_command
from tools.native_core import CSRC, FLAGS, find_compiler
from tools.ninja_build import Object, build

BUILD_DIR = CSRC.parent / "build" / "candidates"


@dataclass(frozen=True)
class Candidate:
    """Another way to write the kernels.

    Attributes:
        bits: its constants in csrc/cuda/candidates.h. Those without mixed precision and the relative scale are compiled
            in a third of the time.
        predicted: microseconds of a step, unless others are named.
        takes_right_steps: whether its bits have to be those of the kernels as they are.
    """

    bits: str
    predicted: str
    takes_right_steps: bool = True


PLAIN = "kWithoutMixed+kWithoutRelative"
UNCHANGED = "unchanged"
# In the order of what one wants to know first.
CANDIDATES = {
    UNCHANGED: Candidate(PLAIN, "0"),
    "prefetch": Candidate(f"kPrefetch+{PLAIN}", "-1 to -2"),
    "tensor trees": Candidate(f"kTensorTrees+{PLAIN}", "-2 to -4"),
    "prefetch, tensor trees": Candidate(f"kPrefetch+kTensorTrees+{PLAIN}", "the sum of both"),
    "without epilogue": Candidate(f"kWithoutEpilogue+{PLAIN}", "-4 to -9", takes_right_steps=False),
    "evict gradients": Candidate(f"kEvictGradients+{PLAIN}", "0 to -3 %"),
    "evict momentum": Candidate(f"kEvictGradients+kEvictMomentum+{PLAIN}", "0 to -3 %"),
    "short arguments": Candidate("kShortArguments+kWithoutRelative", "-1 to -5 of the host"),
    "without look-up": Candidate(f"kWithoutLookUp+{PLAIN}", "-1 to -2", takes_right_steps=False),
}


def build_candidates(names: Iterable[str], architectures: Sequence[int] = ()) -> dict[str, Path | str]:
    """Compiles candidates side by side; returns the module of each, or in words why there is none.

    Args:
        names: of `CANDIDATES`; the first are begun first.
        architectures: compute capabilities times 10; none: the extension's.
    """
    names = list(names)
    compiler = find_compiler()
    try:
        toolkit = find_toolkit(compiler) if compiler else None
    except UnusableToolkit as error:
        return dict.fromkeys(names, str(error))
    if compiler is None or toolkit is None:
        return dict.fromkeys(names, NO_NVCC if compiler else "no C++ compiler was found")

    def build_one(name: str) -> Path | str:
        try:
            return _build(name, compiler, toolkit, architectures or toolkit.architectures)
        except subprocess.CalledProcessError as error:
            return f"it could not be compiled: {error}"

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(names, threads.map(build_one, names), strict=True))


def _build(name: str, compiler: list[str], toolkit: Toolkit, architectures: Sequence[int]) -> Path:
    import pybind11  # here, as in setup.py

    include = ["-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()]
    define = f"-DSASGD_CANDIDATES={CANDIDATES[name].bits}"
    kernels = [*nvcc_command(toolkit, compiler, architectures), define]
    bindings = [*compiler, *FLAGS, *include]
    return build(
        [
            Object(CSRC / "cuda/step.cu", "cuda_step.o", kernels),
            Object(CSRC / "cuda/bindings.cpp", "cuda_bindings.o", bindings),
            Object(CSRC / "cuda/module.cpp", "module.o", bindings),
        ],
        output=f"candidate{sysconfig.get_config_var('EXT_SUFFIX')}",
        linker=compiler,
        link_flags=["-shared", "-Wl,--exclude-libs,ALL", *toolkit.link_flags],
        build_dir=BUILD_DIR / name.replace(",", "").replace(" ", "-"),
    )


def enter(name: str, module: Path | None) -> None:
    """Has `backend=name` be a candidate's; without a module, the CPU's kernel under another name."""
    from sasgd_fused.backends import BACKENDS, Entry
    from sasgd_fused.backends.base import Backend
    from sasgd_fused.backends.fused import FusedBackend
    from sasgd_fused.backends.kernel import CudaKernel
    from sasgd_fused.plan import State, StepPlan

    native = BACKENDS["native"]
    if name in BACKENDS:  # a second time pybind11 would refuse it
        return
    if module is None:
        BACKENDS[name] = native
        return
    # A full name of its own: pybind11 gives a module of the same name again, whatever the file.
    spec = importlib.util.spec_from_file_location(f"{name}.candidate", module)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)

    class CandidateKernel(CudaKernel):
        core = loaded

    def make(plan: StepPlan, state: State) -> Backend:
        return FusedBackend(plan, state, name, CandidateKernel)

    BACKENDS[name] = Entry(native.why_not, make)
