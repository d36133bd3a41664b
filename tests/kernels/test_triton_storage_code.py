"""What Triton makes of its kernels for plans with mixed storage or the relative scale. Needs no GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import pytest

from tests.kernels.compiled_triton import (
    CHUNK_KERNELS,
    ELEMENTS,
    EXCHANGE,
    GRADIENT_KERNELS,
    KERNELS,
    STEP_SIZES,
    Code,
    Compiled,
    compile_triton,
)

# One worker compiles for all.
pytestmark = [pytest.mark.kernels, pytest.mark.xdist_group("triton storage code")]

# All of the variants on all of the targets would take minutes. Each of these has most of something: of the registers,
# of the kinds of accesses, of the accesses of 16 bytes.
COMPILED = (
    ("sm_80", "stochastic rounding"),
    ("sm_90", "masters, small momentum, stochastic rounding"),
    ("gfx942", "masters"),
    ("sm_80", "relative"),
    ("sm_90", "relative, masters, small momentum, stochastic rounding"),
    ("gfx942", "relative"),
)
cases = pytest.mark.parametrize(("target", "variant"), COMPILED)
relative_cases = pytest.mark.parametrize(("target", "variant"), [case for case in COMPILED if "relative" in case[1]])

MOVES = {
    "ptx": {
        16: (r"\bld\.global\S*\.v4\.[bfu]32\b", r"\bst\.global\S*\.v4\.[bfu]32\b"),
        8: (r"\bld\.global\S*\.v2\.[bfu]32\b", r"\bst\.global\S*\.v2\.[bfu]32\b"),
    },
    "amdgcn": {
        16: (r"\bglobal_load_dwordx4\b", r"\bglobal_store_dwordx4\b"),
        8: (r"\bglobal_load_dwordx2\b", r"\bglobal_store_dwordx2\b"),
    },
}

Compiler = Callable[[str, str], Compiled]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """Compiles the kernels for a target and a variant."""

    @cache
    def compile_for(target: str, variant: str) -> Compiled:
        folder = tmp_path_factory.mktemp("triton")
        return compile_triton(target, variant, folder=folder, program="triton_storage_code")

    return compile_for


def kernels_of(variant: str) -> set[str]:
    """The names of what is compiled."""
    return {*KERNELS, *(GRADIENT_KERNELS if "relative" in variant else ())}


def moves(element: int, weight: int, size: int) -> int:
    """How often a thread moves so many bytes for its elements of this size, beside weights of that one."""
    vector = min(16, 16 // weight * element)
    return ELEMENTS * element // vector if vector == size else 0


def vectors(variant: str, size: int) -> tuple[int, int]:
    """How often a thread loads and stores so many bytes in both of the loops that take vectors."""
    loads = stores = 0
    for param, grad in STEP_SIZES:
        weight = 4 if "masters" in variant else param
        momentum = 2 if "small momentum" in variant and weight == 4 else weight
        states = moves(weight, weight, size) + moves(momentum, weight, size)
        loads += 2 * states + moves(grad, weight, size)
        stores += 2 * (states + (moves(param, weight, size) if param != weight else 0))
    return loads, stores


def vectors_of_gradients(variant: str, size: int) -> int:
    """How often a thread loads so many bytes in the loops over vectors of the pass over the gradients."""
    sizes = [(4 if "masters" in variant else param, grad) for param, grad in STEP_SIZES]
    return sum(moves(weight, weight, size) + moves(grad, weight, size) for weight, grad in sizes)


@cases
def test_vectors_are_of_as_many_elements_as_16_bytes_of_weights(target: str, variant: str, compiled: Compiler) -> None:
    code = compiled(target, variant).kernels["step_kernel"]
    for size, patterns in MOVES[code.kind].items():
        assert tuple(len(re.findall(p, code.text)) for p in patterns) == vectors(variant, size), size
        if code.kind == "ptx":  # the assembler may have unrolled loops
            kernel, bits, expected = code.on_nvidia(), 8 * size, vectors(variant, size)
            assert kernel.count(f"LDG.E.{bits}") >= expected[0]
            assert kernel.count(f"STG.E.{bits}") >= expected[1]


@relative_cases
def test_the_pass_over_the_gradients_takes_such_vectors_too(target: str, variant: str, compiled: Compiler) -> None:
    code = compiled(target, variant).kernels["gradient_kernel"]
    for size, (loads, stores) in MOVES[code.kind].items():
        assert len(re.findall(loads, code.text)) == vectors_of_gradients(variant, size), size
        assert not re.findall(stores, code.text), size
    assert loops_over_vectors(code) == len(STEP_SIZES)


@cases
def test_kernels_spill_and_contract_nothing(target: str, variant: str, compiled: Compiler) -> None:
    kernels = compiled(target, variant).kernels
    assert kernels.keys() == kernels_of(variant)
    assert not {name: complaints for name, code in kernels.items() if (complaints := code.complaints())}
    for name in kernels.keys() & {*CHUNK_KERNELS, "gradient_kernel"} if target != "gfx942" else ():
        assert kernels[name].on_nvidia().resident_blocks(kernels[name].threads) >= 4, name


@cases
def test_loops_over_vectors_exchange_nothing(target: str, variant: str, compiled: Compiler) -> None:
    assert loops_over_vectors(compiled(target, variant).kernels["step_kernel"]) == 2 * len(STEP_SIZES)


def loops_over_vectors(code: Code) -> int:
    """How many loops take vectors. Each has to load, and to exchange nothing."""
    loops = re.findall(
        r"^( *)(?:%\S+ = )?scf\.for %\w+ = %c0_i32 to (.*?)^\1}", code.read("ttgir"), re.DOTALL | re.MULTILINE
    )
    for _, loop in loops:
        assert "tt.load" in loop
        assert not [found[0] for found in EXCHANGE.finditer(loop)]
    return len(loops)


@cases
def test_integers_are_unsigned_and_offsets_have_64_bits(target: str, variant: str, compiled: Compiler) -> None:
    text = compiled(target, variant).kernels["step_kernel"].read("ttir")
    is_stochastic = "stochastic" in variant
    # Keys are made of 64 bits: the shifts by 30 and 27 are those of `mix`.
    assert [len(re.findall(rf"arith\.shrui %\w+, %c{n}_i64\b", text)) for n in (30, 27)] == [2 * is_stochastic] * 2
    assert ("arith.shrui" in text) is is_stochastic
    assert "arith.shrsi" not in text
    (offset,) = set(re.findall(r"(%\w+) = arith\.muli %\w+, %c8192_i64\b", text))
    assert re.search(rf"arith\.muli {offset}, %\w+ : i64", text)
    # Random bits are made of the low half of a place, with a key of the high half.
    assert len(re.findall(rf"arith\.trunci {offset} :", text)) == is_stochastic
    assert set(re.findall(r"tt\.int_to_ptr %\w+ : (\w+)", text)) == {"i64"}


@cases
def test_one_variant_serves_all_gradients(target: str, variant: str, compiled: Compiler) -> None:
    told = compiled(target, variant)
    assert len(told.launches) == 2
    for case, wanted in told.launches.items():
        assert wanted.keys() == kernels_of(variant), case
        for name, types_and_alignments in wanted.items():
            (made,) = told.kernels[name].variants
            assert made.startswith(types_and_alignments), f"{case}: {name}"
