"""What Triton makes of its kernels: memory accesses, registers, no contraction, one variant of each. Needs no GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.kernels.compiled_triton import (
    CHUNK_KERNELS,
    ELEMENTS,
    EXCHANGE,
    KERNELS,
    STEP_SIZES,
    Compiled,
    compile_triton,
)

# One worker compiles for all.
pytestmark = [pytest.mark.kernels, pytest.mark.xdist_group("triton code")]

TARGETS = ("sm_80", "sm_90", "gfx942")

NORM_SIZES = (4, 2, 2)  # bytes of a weight that the norm pass has loops for
# Two loops of the step take vectors: with gradients in vectors, and with gradients one by one.
VECTOR_LOOPS = {"step_kernel": 2 * len(STEP_SIZES), "norm_kernel": len(NORM_SIZES)}
MOVES_16_BYTES = {
    "ptx": (r"\bld\.global\S*\.v4\.[bfu]32\b", r"\bst\.global\S*\.v4\.[bfu]32\b"),
    "amdgcn": (r"\bglobal_load_dwordx4\b", r"\bglobal_store_dwordx4\b"),
}

Compiler = Callable[..., Compiled]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """Compiles the kernels for a target, with other options than the backend's if some are given."""

    @cache
    def compile_for(target: str, **options: Any) -> Compiled:
        folder = tmp_path_factory.mktemp("triton")
        return compile_triton(target, json.dumps(options), folder=folder, program="triton_code")

    return compile_for


def vectors(kernel: str) -> tuple[int, int]:
    """How often a thread loads and stores 16 bytes in the loops that take vectors."""
    if kernel == "norm_kernel":
        return sum(NORM_SIZES) * ELEMENTS // 16, 0
    states = sum(2 * weight for weight, _ in STEP_SIZES) * ELEMENTS // 16
    grads = sum(grad for _, grad in STEP_SIZES) * ELEMENTS // 16
    return 2 * states + grads, 2 * states


@pytest.mark.parametrize("target", TARGETS)
def test_vectors_are_loaded_and_stored_16_bytes_at_a_time(target: str, compiled: Compiler) -> None:
    for name in CHUNK_KERNELS:
        code = compiled(target).kernels[name]
        counts = tuple(len(re.findall(pattern, code.text)) for pattern in MOVES_16_BYTES[code.kind])
        assert counts == vectors(name), name
        if code.kind == "ptx":  # the assembler may have unrolled loops
            kernel = code.on_nvidia()
            assert kernel.count("LDG.E.128") >= counts[0], name
            assert kernel.count("STG.E.128") >= counts[1], name


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_spill_and_contract_nothing(target: str, compiled: Compiler) -> None:
    kernels = compiled(target).kernels
    assert kernels.keys() == set(KERNELS)
    complaints = {
        (name, kind): f"{len(found)}, the first: {found[0]}"
        for name, code in kernels.items()
        for kind, found in code.complaints().items()
    }
    assert not complaints


@pytest.mark.parametrize("target", TARGETS)
def test_loops_over_vectors_exchange_nothing(target: str, compiled: Compiler) -> None:
    for name in CHUNK_KERNELS:
        text = compiled(target).kernels[name].read("ttgir")
        # They begin at 0; the loops that take what is left begin where these end.
        loops = re.findall(r"^( *)(?:%\S+ = )?scf\.for %\w+ = %c0_i32 to (.*?)^\1}", text, re.DOTALL | re.MULTILINE)
        assert len(loops) == VECTOR_LOOPS[name]
        assert EXCHANGE.search(text), "the sums of the lanes do exchange"
        for _, loop in loops:
            assert "tt.load" in loop
            assert not [found[0] for found in EXCHANGE.finditer(loop)], name


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_tree_has_several_loads_under_way(target: str, compiled: Compiler) -> None:
    kernel = compiled(target).kernels["finish_norm_kernel"].on_nvidia()
    instructions = [line for line in kernel.instructions if line.startswith(("LDG.E.128", "DADD"))]
    before_the_first_addition = [line.startswith("DADD") for line in instructions].index(True)
    assert before_the_first_addition >= 4


@pytest.mark.parametrize("target", TARGETS)
def test_one_variant_of_each_kernel_serves_all_models_and_hyperparameters(target: str, compiled: Compiler) -> None:
    told = compiled(target)
    assert len(told.launches) > 20
    for case, wanted in told.launches.items():
        assert wanted.keys() == set(KERNELS), case
        for name, types_and_alignments in wanted.items():
            (variant,) = told.kernels[name].variants
            assert variant.startswith(types_and_alignments), f"{case}: {name}"


@pytest.mark.parametrize("target", TARGETS)
def test_registers_are_printed_and_let_four_programs_in(
    target: str, compiled: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for name, code in compiled(target).kernels.items():
        if code.kind == "ptx":
            kernel = code.on_nvidia()
            line = f"{kernel.registers} registers, {kernel.shared} bytes of shared memory"
            if name in CHUNK_KERNELS:
                programs = kernel.resident_blocks(code.threads)
                assert programs >= 4, f"{name}: {line}"
                line += f", {programs} programs of {code.threads} threads on a multiprocessor"
        else:
            facts = code.on_amd()
            line = f"{facts['vgpr_count']} vector registers, {facts['sgpr_count']} scalar ones, {code.shared} bytes"
        lines.append(f"  {target} {name}: {line}")
    with capsys.disabled():
        print("", *lines, sep="\n")


@pytest.mark.parametrize(
    ("target", "too_few_registers", "expected"),
    [
        ("sm_90", {"maxnreg": 24}, {"contraction", "SASS: contraction", "SASS: local memory", "SASS: stack"}),
        ("gfx942", {"waves_per_eu": 8}, {"contraction", "private_segment_fixed_size", "vgpr_spill_count"}),
    ],
)
def test_complaints_are_made_of_contraction_and_spills(
    target: str, too_few_registers: dict[str, int], expected: set[str], compiled: Compiler
) -> None:
    code = compiled(target, enable_fp_fusion=True, **too_few_registers).kernels["step_kernel"]
    assert code.complaints().keys() == expected
