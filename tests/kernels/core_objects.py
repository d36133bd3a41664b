"""What the program that tests the CPU core is compiled from."""

from __future__ import annotations

from tests.kernels.native_programs import SANITIZERS, SOURCES, compiler_for
from tools import native_core
from tools.native_core import CSRC
from tools.ninja_build import Object

NATIVE = SOURCES / "native"


def core(variant: str) -> list[Object]:
    """The core itself: the kernels once for each instruction set, after all else."""
    return native_core.core_objects(compiler_for("native"), SANITIZERS[variant])


def conversions(variant: str) -> list[Object]:
    """What the tests reach the kernels' conversions by, for each instruction set too."""
    return [
        _test("conversions.cpp", item.output.replace("step_kernel", "conversions"), item) for item in core(variant)[1:]
    ]


def core_tests(variant: str) -> list[Object]:
    """The tests, which are compiled once."""
    step = core(variant)[0]
    names = (path.name for path in sorted(NATIVE.glob("*.cpp")) if path.stem != "conversions")
    return [_test(name, name.replace(".cpp", ".o"), step) for name in names]


def _test(name: str, output: str, like: Object) -> Object:
    return Object(NATIVE / name, output, [*like.command, f"-I{CSRC}"])
