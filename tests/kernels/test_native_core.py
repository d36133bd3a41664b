"""The C++ core passes the tests of `tests/kernels/native`, also under the sanitizers, and these notice mistakes."""

from __future__ import annotations

from functools import cache

import pytest

from tests.kernels.core_objects import conversions, core, core_tests
from tests.kernels.native_programs import build_program, run
from tools.native_core import OPENMP


@cache
def program(variant: str) -> list[str]:
    """Builds the test program in a variant and returns the command that runs it."""
    objects = [*core(variant), *conversions(variant), *core_tests(variant)]
    return build_program("native_tests", objects, variant, "native")


TESTS = ("conversions", "random", "precision", "steps", "bits", "carried", "relative")


@pytest.mark.parametrize(
    ("variant", "test"),
    [
        *[("plain", test) for test in TESTS],
        *[pytest.param("address", test, marks=pytest.mark.kernels) for test in TESTS],
        pytest.param("thread", "bits", marks=pytest.mark.kernels),
    ],
)
def test_core(variant: str, test: str) -> None:
    done = run([*program(variant), test])
    assert done.returncode == 0, done.stdout


def test_a_nudged_weight_is_noticed() -> None:
    assert_noticed("plain", "nudged-weight", ["weight 0[5]: got", "1 failures"])


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("variant", "bug", "complaints"),
    [
        ("address", "overrun-tail", ["AddressSanitizer: heap-buffer-overflow"]),
        ("address", "overrun-vector", ["ERROR: AddressSanitizer", "READ of size"]),
        ("address", "overrun-param", ["AddressSanitizer: heap-buffer-overflow", "WRITE of size", "step_kernel.cpp"]),
        ("address", "bad-bool", ["csrc/cpu/step.cpp", "runtime error: load of value 2"]),
        ("thread", "shared-weights", ["ThreadSanitizer: data race", "step_kernel.cpp"]),
    ],
)
def test_bugs_are_noticed_by_the_sanitizers(variant: str, bug: str, complaints: list[str]) -> None:
    if bug == "shared-weights" and not OPENMP:
        pytest.skip("the kernels are compiled for one thread here")
    assert_noticed(variant, bug, complaints)


def assert_noticed(variant: str, bug: str, complaints: list[str]) -> None:
    done = run([*program(variant), bug])
    assert done.returncode != 0
    for complaint in complaints:
        assert complaint in done.stdout
