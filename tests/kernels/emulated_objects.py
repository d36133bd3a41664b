"""How the CUDA kernels, and what tests them, are compiled for the CPU."""

from __future__ import annotations

from functools import cache

from tests.kernels.native_programs import SANITIZERS, SOURCES
from tests.kernels.toolchain import toolkit_or_reason
from tools.native_core import CSRC, FLAGS, find_compiler
from tools.ninja_build import Object

# The emulation is compiled without a sanitizer, and tells it which stack it is on.
_TOLD = {"plain": [], "address": ["-DSASGD_ADDRESS_SANITIZER"], "thread": ["-DSASGD_THREAD_SANITIZER"]}


def why_not_emulated() -> str | None:
    """Returns why the CUDA kernels cannot be compiled for the CPU here, or None if they can."""
    compiler = find_compiler()
    if compiler is None:
        return "no C++ compiler was found"
    found = toolkit_or_reason(tuple(compiler))
    return found if isinstance(found, str) else None


@cache
def emulated_command() -> list[str]:
    """Returns the command that compiles C++ that includes the CUDA kernels' headers, for the CPU."""
    compiler = find_compiler()
    assert compiler
    toolkit = toolkit_or_reason(tuple(compiler))
    assert not isinstance(toolkit, str)
    system = [word for folder in toolkit.includes for word in ("-isystem", str(folder))]
    # -O1, because it compiles in a third of the time.
    own = ["-O1", "-DSASGD_EMULATED_CUDA", f"-I{SOURCES / 'emulation'}", f"-I{CSRC}", "-Wno-unknown-pragmas"]
    return [*compiler, *FLAGS, *own, *system]


def emulation(variant: str = "plain") -> list[Object]:
    """The emulation itself."""
    command = [*emulated_command(), *_TOLD[variant]]
    sources = [path for path in sorted((SOURCES / "emulation").glob("*.cpp")) if path.stem != "module"]
    return [Object(path, f"emulation_{path.stem}.o", command) for path in sources]


def emulated_kernels(variant: str = "plain", candidates: str = "") -> Object:
    """The kernels and their launches; with some of the bits in csrc/cuda/candidates.h, as `kPrefetch+kTensorTrees`."""
    # Optimizing what the address sanitizer adds takes longer than it saves. GCC's thread sanitizer does not watch the
    # copying of structs without optimization.
    level = ["-O0"] if variant == "address" else []
    command = [*_checked(variant), *level, "-x", "c++"]
    if candidates:
        name = f"cuda_{candidates.replace('+', '_')}.o"
        return Object(CSRC / "cuda/step.cu", name, [*command, f"-DSASGD_CANDIDATES={candidates}"])
    return Object(CSRC / "cuda/step.cu", "cuda_step.o", command)


def emulated_tests(variant: str) -> list[Object]:
    """The sources of the program that tests the kernels."""
    sources = {f"cuda_{path.stem}.o": path for path in sorted((SOURCES / "native/cuda").glob("*.cpp"))}
    sources["cuda_double_loop.o"] = SOURCES / "native/double_loop.cpp"
    return [Object(path, name, _checked(variant)) for name, path in sources.items()]


def _checked(variant: str) -> list[str]:
    return [*emulated_command(), *_TOLD[variant], *SANITIZERS[variant]]
