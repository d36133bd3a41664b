"""Mistakes in csrc are noticed by the programs that test it, which have nothing to say where none is made."""

from __future__ import annotations

from functools import cache

import pytest

from tests.kernels.core_mistakes import CORE_MISTAKES
from tests.kernels.core_objects import conversions, core, core_tests
from tests.kernels.cuda_mistakes import CUDA_MISTAKES
from tests.kernels.emulated_objects import emulated_kernels, emulated_tests, emulation, why_not_emulated
from tests.kernels.mistakes import assert_noticed, assert_right_otherwise, with_mistakes
from tests.kernels.native_programs import build_program, give_up

pytestmark = pytest.mark.kernels


@cache
def mistaken_core() -> list[str]:
    """Builds the program that tests the CPU core; returns the command that runs it."""
    # The tests themselves see the sources as they are.
    wrong = with_mistakes([*core("plain"), *conversions("plain")], "core_mistakes", CORE_MISTAKES)
    return build_program("mistaken_core", [*wrong, *core_tests("plain")], "plain", "native")


@cache
def mistaken_kernels(variant: str) -> list[str]:
    """Builds the program that tests the CUDA kernels; returns the command that runs it."""
    if reason := why_not_emulated():
        give_up(reason, "cuda")
    tests = emulated_tests(variant)
    launching = [item for item in tests if item.output == "cuda_huge_test.o"]  # it has the kernels in itself
    wrong = with_mistakes([emulated_kernels(variant), *launching], "cuda_mistakes", CUDA_MISTAKES)
    right = [item for item in tests if item not in launching]
    return build_program("mistaken_kernels", [*wrong, *right, *emulation(variant)], variant, "cuda")


@pytest.mark.parametrize("name", CORE_MISTAKES)
def test_mistakes_in_the_core_are_noticed(name: str) -> None:
    assert_noticed(mistaken_core(), name, CORE_MISTAKES)


def test_the_core_is_right_otherwise() -> None:
    assert_right_otherwise(mistaken_core(), CORE_MISTAKES.values())


@pytest.mark.parametrize("name", CUDA_MISTAKES)
def test_mistakes_in_the_kernels_are_noticed(name: str) -> None:
    assert_noticed(mistaken_kernels(CUDA_MISTAKES[name].variant), name, CUDA_MISTAKES)


@pytest.mark.parametrize("variant", ["plain", "address", "thread"])
def test_the_kernels_are_right_otherwise(variant: str) -> None:
    assert_right_otherwise(
        mistaken_kernels(variant), [mistake for mistake in CUDA_MISTAKES.values() if mistake.variant == variant]
    )
