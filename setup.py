"""Builds the native extension; everything else about the package stands in pyproject.toml.

The environment has a word in it:
    CXX: the C++ compiler to use; options may follow it.
    SASGD_BUILD_NATIVE: `auto` (default) builds the extension where that is possible, `1` fails
        where it is not, `0` leaves it out.
    SASGD_BUILD_CUDA: the same for the extension's CUDA part.
    SASGD_CUDA_ARCHITECTURES: what to compile for, as in `80 90`, which is the default, or `all`, as a release.
    CUDA_HOME or CUDA_PATH: the CUDA toolkit to use; otherwise tools/cuda.py looks for one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from tools.cuda import NO_NVCC, Toolkit, UnusableToolkit, cuda_objects, find_toolkit  # noqa: E402
from tools.native_core import CSRC, FLAGS, OPENMP, core_objects, find_compiler  # noqa: E402
from tools.ninja_build import Object, build  # noqa: E402

# Not setuptools' own folder: an editable install gets a new one each time and would compile it all.
BUILD_DIR = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
LINK_FLAGS = (
    ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-Wl,--exclude-libs,ALL"]
)
PYTHON_INCLUDE = Path(sysconfig.get_path("include"))

WITHOUT_EXTENSION = """
sasgd_fused: {missing}.
    The package is installed without its native extension: the backends `reference` and `foreach`
    work, `native`, the fast one, does not. To get it, install what is missing (on Debian and
    Ubuntu `apt install g++ python3-dev`, on macOS `xcode-select --install`), then install this
    package again, with `--force-reinstall --no-deps --no-cache-dir` if pip does it.
    SASGD_BUILD_NATIVE=0 leaves the extension out without this message.
"""

WITHOUT_CUDA = """
sasgd_fused: {missing}.
    The native extension is built without CUDA: on a GPU the backend `foreach` runs. To get it,
    mend that and install this package again. SASGD_BUILD_CUDA=0 leaves CUDA out without this
    message.
"""


WITH_CUDA = """\
sasgd_fused: compiling CUDA kernels by {nvcc} for {targets}, which takes a minute or more.
    SASGD_CUDA_ARCHITECTURES, as in `80 90` or `all`, chooses others; SASGD_BUILD_CUDA=0 leaves CUDA out.
"""


def wish(variable: str) -> str:
    """What the environment says of a part: auto, 0 or 1."""
    value = os.environ.get(variable, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{variable} must be auto, 0 or 1, got {value!r}")
    return value


def extension_wanted() -> bool:
    """Whether to build, by `SASGD_BUILD_NATIVE` and by what there is to build with."""
    native, cuda = wish("SASGD_BUILD_NATIVE"), wish("SASGD_BUILD_CUDA")
    if native == "0":
        return False
    try:
        missing = missing_tool()
    except FileNotFoundError as error:
        raise SystemExit(
            f"sasgd_fused: {error}; correct it, unset it, or leave the extension out with SASGD_BUILD_NATIVE=0"
        ) from error
    for variable, value in {"SASGD_BUILD_NATIVE": native, "SASGD_BUILD_CUDA": cuda}.items():
        if missing and value == "1":
            raise SystemExit(f"sasgd_fused: {variable}=1, but {missing}")
    if missing:
        print(WITHOUT_EXTENSION.format(missing=missing), file=sys.stderr)
    return not missing


def missing_tool() -> str | None:
    """What this machine lacks for the build, in words."""
    if find_compiler() is None:
        return "no C++ compiler was found (CXX is not set, no c++, g++ or clang++ is on PATH)"
    if not (PYTHON_INCLUDE / "Python.h").is_file():
        return f"Python's own header Python.h was not found in {PYTHON_INCLUDE}"
    return None


def cuda_toolkit(compiler: list[str]) -> Toolkit | None:
    """What to build the CUDA part with, by `SASGD_BUILD_CUDA` and by what there is; None leaves it out."""
    cuda = wish("SASGD_BUILD_CUDA")
    if cuda == "0":
        return None
    try:
        toolkit, missing = find_toolkit(compiler), NO_NVCC
    except UnusableToolkit as error:
        toolkit, missing = None, str(error)
        if cuda == "auto":
            print(WITHOUT_CUDA.format(missing=missing), file=sys.stderr)
    if toolkit is None and cuda == "1":
        raise CompileError(f"sasgd_fused: SASGD_BUILD_CUDA=1, but {missing}")
    return toolkit


class NinjaBuild(build_ext):
    """Hands the compiling to ninja."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        compiler = find_compiler()
        assert compiler is not None, "the extension is only asked for where there is a compiler"
        toolkit = None
        try:
            core = core_objects(compiler)
            toolkit = cuda_toolkit(compiler)
            if toolkit:
                targets = ", ".join(f"sm_{number}" for number in toolkit.architectures)
                print(WITH_CUDA.format(nvcc=toolkit.nvcc, targets=targets), file=sys.stderr)
            library = build_library(target.name, compiler, core, toolkit)
        except subprocess.CalledProcessError as error:
            used, ways_out = compiler[0], "SASGD_BUILD_NATIVE=0 installs the package without it"
            if toolkit:
                used += f" and {toolkit.nvcc}"
                ways_out = f"SASGD_BUILD_CUDA=0 builds it without CUDA, {ways_out}"
            raise CompileError(
                f"sasgd_fused: the native extension could not be built with {used}, see above; {ways_out}"
            ) from error
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(library), str(target))


def build_library(name: str, compiler: list[str], core: list[Object], toolkit: Toolkit | None) -> Path:
    """Compile and link the extension, with its CUDA part if there is a toolkit."""
    # Here, because a build without the extension does not need it.
    import pybind11

    flags = [*FLAGS, "-isystem", str(PYTHON_INCLUDE), "-isystem", pybind11.get_include()]
    objects, link_flags = core, [*OPENMP, *LINK_FLAGS]
    if toolkit:
        flags += ["-DSASGD_WITH_CUDA=1"]
        cuda_bindings = Object(CSRC / "cuda/bindings.cpp", "cuda_bindings.o", [*compiler, *flags])
        # What takes longest comes first.
        objects = [*cuda_objects(toolkit, compiler), cuda_bindings, *objects]
        link_flags += toolkit.link_flags
    bindings = Object(CSRC / "bindings.cpp", "bindings.o", [*compiler, *flags])
    return build([*objects, bindings], output=name, linker=compiler, link_flags=link_flags, build_dir=BUILD_DIR)


sources = sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob("*.cpp"))
setup(
    license="MIT",
    ext_modules=[Extension("sasgd_fused._C", sources)] if extension_wanted() else [],
    cmdclass={"build_ext": NinjaBuild},
)
