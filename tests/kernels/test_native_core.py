"""The C++ core passes the tests of `tests/native`, also under the sanitizers, and these notice what they should."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.kernels.native_programs import BUILD_DIR, SANITIZERS, SOURCES, compiler_for, prefix_for, run
from tools.native_core import CSRC, OPENMP, core_objects
from tools.ninja_build import Object, build

NATIVE = SOURCES / "native"


def build_program(compiler: list[str], variant: str) -> Path:
    core = core_objects(compiler, SANITIZERS[variant])
    step, kernels = core[0], core[1:]
    conversions = [
        Object(
            NATIVE / "conversions.cpp",
            kernel.output.replace("step_kernel", "conversions"),
            [*kernel.command, f"-I{CSRC}"],
        )
        for kernel in kernels
    ]
    others = [
        Object(source, f"{source.stem}.o", [*step.command, f"-I{CSRC}"])
        for source in sorted(NATIVE.glob("*.cpp"))
        if source.name != "conversions.cpp"
    ]
    return build(
        [*core, *conversions, *others],
        output="native_tests",
        linker=[*compiler, *SANITIZERS[variant]],
        link_flags=OPENMP,
        build_dir=BUILD_DIR / variant,
    )


@cache
def program(variant: str) -> list[str]:
    """Builds the test program in a variant and returns the command that runs it."""
    prefix = prefix_for(variant, "native")
    return [*prefix, str(build_program(compiler_for("native"), variant))]


@pytest.mark.parametrize(
    ("variant", "test"),
    [
        *[
            (variant, test)
            for variant in ("plain", "address")
            for test in ("conversions", "random", "storage", "steps", "bits")
        ],
        ("thread", "bits"),
    ],
)
def test_core(variant: str, test: str) -> None:
    done = run([*program(variant), test])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("variant", "bug", "complaints"),
    [
        ("plain", "nudged-weight", ["weight 0[5]: got", "1 failures"]),
        ("address", "overrun-tail", ["AddressSanitizer: heap-buffer-overflow"]),
        ("address", "overrun-vector", ["ERROR: AddressSanitizer", "READ of size"]),
        ("address", "overrun-copy", ["AddressSanitizer: heap-buffer-overflow", "WRITE of size", "step_kernel.cpp"]),
        ("address", "bad-bool", ["csrc/cpu/step.cpp", "runtime error: load of value 2"]),
        ("thread", "shared-weights", ["ThreadSanitizer: data race", "step_kernel.cpp"]),
    ],
)
def test_bugs_are_noticed(variant: str, bug: str, complaints: list[str]) -> None:
    if bug == "shared-weights" and not OPENMP:
        pytest.skip("the kernels are compiled for one thread here")
    done = run([*program(variant), bug])
    assert done.returncode != 0
    for complaint in complaints:
        assert complaint in done.stdout
