"""What Triton makes of its kernels: memory accesses, registers, no contraction, one variant of each. Needs no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.native_programs import give_up
from tests.kernels.test_cuda_code import Kernel, take_apart

ROOT = Path(__file__).parents[2]
TARGETS = ("sm_80", "sm_90", "gfx942")
CHUNK_KERNELS = ("step_kernel", "norm_kernel")
KERNELS = (*CHUNK_KERNELS, "finish_step_kernel", "finish_norm_kernel")

# Bytes of a weight and of a gradient that the step has loops for, and of a weight that the norm pass has.
STEP_SIZES = ((4, 4), (2, 2), (2, 4), (2, 2), (2, 4))
NORM_SIZES = (4, 2, 2)
ELEMENTS = 8  # of a thread in a tile
# Two loops of the step take vectors: with gradients in vectors, and with gradients one by one.
VECTOR_LOOPS = {"step_kernel": 2 * len(STEP_SIZES), "norm_kernel": len(NORM_SIZES)}
MOVES_16_BYTES = {
    "ptx": (r"\bld\.global\S*\.v4\.[bfu]32\b", r"\bst\.global\S*\.v4\.[bfu]32\b"),
    "amdgcn": (r"\bglobal_load_dwordx4\b", r"\bglobal_store_dwordx4\b"),
}

# What the compiler's text must not have. Divisions in float64 have a v_fma_f64 of their own, where PTX has a div.
FORBIDDEN = {
    "ptx": {"contraction": r"\bfma\.\S+", "atomic": r"\b(atom|red)\.\S+"},
    "amdgcn": {"contraction": r"\bv_(pk_)?(fma|mac|mad|dot)\w*_b?f(16|32)(_\w+)?\b", "atomic": r"\b\w+_atomic_\w+"},
}
AMD_SPILLS = ("private_segment_fixed_size", "sgpr_spill_count", "vgpr_spill_count")

# What a loop of Triton's IR needs shared memory or other threads for.
EXCHANGE = re.compile(r"\bttg\.(convert_layout|local_\w+)|\btt\.(reduce|gather)\b")


@dataclass
class Code:
    """A kernel as compiled for one target."""

    target: str
    variants: list[str]  # what it was compiled for, types first
    threads: int
    shared: int  # bytes
    files: dict[str, str]

    @property
    def text(self) -> str:
        """The compiler's text that is assembled."""
        return self.read(self.kind)

    @property
    def kind(self) -> str:
        return "ptx" if "ptx" in self.files else "amdgcn"

    def read(self, kind: str) -> str:
        return Path(self.files[kind]).read_text(encoding="utf-8")

    def on_nvidia(self) -> Kernel:
        """What the assembler made of it."""
        (kernel,) = take_apart(Path(self.files["cubin"]))
        return replace(kernel, architecture=int(self.target.removeprefix("sm_")), shared=kernel.shared + self.shared)

    def on_amd(self) -> dict[str, int]:
        """What the assembler is told of registers and memory."""
        return {name: int(value) for name, value in re.findall(r"^ +\.(\w+): +(\d+)$", self.text, re.MULTILINE)}

    def complaints(self) -> dict[str, list[str]]:
        """What must not be there, by its kind."""
        found = {kind: [m[0] for m in re.finditer(p, self.text)] for kind, p in FORBIDDEN[self.kind].items()}
        if self.kind == "ptx":
            found |= {f"SASS: {kind}": instructions for kind, instructions in self.on_nvidia().complaints().items()}
        else:
            facts = self.on_amd()
            found |= {name: [str(facts[name])] for name in AMD_SPILLS if facts[name]}
        return {kind: instructions for kind, instructions in found.items() if instructions}


@dataclass
class Compiled:
    """What `triton_code` told: what launches of the kernels are to be compiled for in each case, and the kernels."""

    launches: dict[str, dict[str, str]]
    kernels: dict[str, Code]


Compiler = Callable[..., Compiled]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """Compiles the kernels for a target, with other options than the backend's if some are given."""
    if importlib.util.find_spec("triton") is None:
        give_up("Triton is not installed", "triton")

    @cache
    def compile_for(target: str, **options: Any) -> Compiled:
        # In an empty folder, so that nothing is found that was compiled before.
        env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
        env.pop("TRITON_INTERPRET", None)
        command = [sys.executable, "-m", "tests.kernels.triton_code", target, json.dumps(options)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        kernels = {name: Code(target, **facts) for name, facts in told.pop("kernels").items()}
        return Compiled(**told, kernels=kernels)

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
