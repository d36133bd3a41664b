"""The CUDA kernels, run on the CPU, pass the tests of `tests/kernels/native/cuda`, also under the sanitizers."""

from __future__ import annotations

from functools import cache

import pytest

from tests.kernels.emulated_objects import emulated_kernels, emulated_tests, emulation, why_not_emulated
from tests.kernels.native_programs import build_program, give_up, run


@cache
def program(variant: str) -> list[str]:
    """Builds the test program in a variant and returns the command that runs it."""
    if reason := why_not_emulated():
        give_up(reason, "cuda")
    objects = [emulated_kernels(variant), *emulated_tests(variant), *emulation(variant)]
    return build_program("cuda_tests", objects, variant, "cuda")


TESTS = ("steps", "bits", "carried", "relative", "precision", "huge")


@pytest.mark.parametrize(
    ("variant", "test"),
    [
        *[("plain", test) for test in TESTS],
        *[pytest.param("address", test, marks=pytest.mark.kernels) for test in TESTS],
        pytest.param("thread", "threads", marks=pytest.mark.kernels),
    ],
)
def test_kernels(variant: str, test: str) -> None:
    done = run([*program(variant), test])
    assert done.returncode == 0, done.stdout
