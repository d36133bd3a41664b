"""Builds the native extension; everything else about the package stands in pyproject.toml.

The environment has two words in it:
    CXX: the C++ compiler to use; options may follow it.
    SASGD_BUILD_NATIVE: `auto` (default) builds the extension where that is possible, `1` fails
        where it is not, `0` leaves it out.
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


def extension_wanted() -> bool:
    """Whether to build, by `SASGD_BUILD_NATIVE` and by what there is to build with."""
    wish = os.environ.get("SASGD_BUILD_NATIVE", "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"SASGD_BUILD_NATIVE must be auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return False
    try:
        missing = missing_tool()
    except FileNotFoundError as error:
        raise SystemExit(
            f"sasgd_fused: {error}; correct it, unset it, or leave the extension out with SASGD_BUILD_NATIVE=0"
        ) from error
    if missing and wish == "1":
        raise SystemExit(f"sasgd_fused: SASGD_BUILD_NATIVE=1, but {missing}")
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


class NinjaBuild(build_ext):
    """Hands the compiling to ninja."""

    def build_extension(self, ext: Extension) -> None:
        # Here, because a build without the extension does not need it.
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name))
        compiler = find_compiler()
        assert compiler is not None, "the extension is only asked for where there is a compiler"
        includes = ["-isystem", str(PYTHON_INCLUDE), "-isystem", pybind11.get_include()]
        bindings = Object(CSRC / "bindings.cpp", "bindings.o", [*compiler, *FLAGS, *includes])
        try:
            library = build(
                [bindings, *core_objects(compiler)],
                output=target.name,
                linker=compiler,
                link_flags=[*OPENMP, *LINK_FLAGS],
                build_dir=BUILD_DIR,
            )
        except subprocess.CalledProcessError as error:
            raise CompileError(
                f"sasgd_fused: {compiler[0]} could not build the native extension, see above; "
                "SASGD_BUILD_NATIVE=0 installs the package without it"
            ) from error
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(library), str(target))


sources = sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob("*.cpp"))
setup(
    ext_modules=[Extension("sasgd_fused._C", sources)] if extension_wanted() else [],
    cmdclass={"build_ext": NinjaBuild},
)
