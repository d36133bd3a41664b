"""The CUDA kernels, run on the CPU: right, for the sanitizers too, and these notice what they should."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from tests.kernels.native_programs import (
    BUILD_DIR,
    SANITIZERS,
    compiler_for,
    emulated_step,
    emulated_tests,
    emulation_objects,
    give_up,
    prefix_for,
    renamed,
    run,
    why_not_emulated,
)
from tools.native_core import CSRC, OPENMP, core_objects
from tools.ninja_build import build


@dataclass(frozen=True)
class Mutant:
    """A mistake in the kernels' source, and how it shows.

    Attributes:
        file: Below csrc/cuda.
        right: What stands there, once.
        wrong: What takes its place.
        variant: Of the program that notices.
        test: The program's test that notices.
        complaint: What it says.
    """

    file: str
    right: str
    wrong: str
    variant: str
    test: str
    complaint: str


RACE = "ThreadSanitizer: data race"
OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
MUTANTS = {
    "reads shared_work too early": Mutant(
        "kernels.cuh", "__syncthreads();  // shared_work is filled in", "", "thread", "threads", RACE
    ),
    "adds up warps too early": Mutant(
        "kernels.cuh", "__syncthreads();  // the sums of all warps are there", "", "thread", "threads", RACE
    ),
    "writes shared_work too early": Mutant(
        "kernels.cuh", "__syncthreads();  // shared_work and of_warps have been read", "", "plain", "steps",
        "no thread can go on",
    ),
    "reads a level too early": Mutant(
        "kernels.cuh", "__syncthreads();  // the next level reads this one", "", "thread", "threads", RACE
    ),
    "reads other blocks' sums unordered": Mutant(
        "kernels.cuh", "memory_order_acq_rel", "memory_order_relaxed", "thread", "threads", RACE
    ),
    "counts without an atomic": Mutant(
        "kernels.cuh",
        "finished.fetch_add(1u, ::cuda::memory_order_acq_rel)",
        "(*tables.finished_blocks)++",
        "thread",
        "threads",
        RACE,
    ),
    "waits in some threads only": Mutant(
        "kernels.cuh",
        "__syncthreads();  // the sums of all warps are there",
        "if (threadIdx.x < 64) __syncthreads();",
        "plain",
        "steps",
        "__syncthreads",
    ),
    "shuffles in some lanes only": Mutant(
        "kernels.cuh",
        "sums.written += __shfl_xor_sync",
        "if (threadIdx.x % 2) sums.written += __shfl_xor_sync",
        "plain",
        "steps",
        "__shfl_xor_sync",
    ),
    "reads shared memory that nobody wrote": Mutant(
        "kernels.cuh",
        "if (threadIdx.x % kWarp == 0) of_warps",
        "if (threadIdx.x % kWarp == 0 && threadIdx.x != kWarp) of_warps",
        "plain",
        "steps",
        "norm 0: got",
    ),
    "has a shared array too short": Mutant(
        "kernels.cuh", "SASGD_SHARED(Sums, of_warps, kWarps)", "SASGD_SHARED(Sums, of_warps, kWarps - 1)", "address",
        "steps", OVERFLOW,
    ),
    "loads beyond a tail": Mutant(
        "elements.cuh", "i < left ? from[i] : narrow<T>(0.0f)", "from[i]", "address", "steps", OVERFLOW
    ),
    "stores beyond a tail": Mutant("elements.cuh", "if (i < left) to[i]", "to[i]", "address", "steps", OVERFLOW),
    "takes any address for aligned": Mutant(
        "chunk_loops.cuh", "% 16 == 0", "% 2 == 0", "address", "steps", "misaligned address"
    ),
    "numbers elements with 32 bits": Mutant(
        "tables.h", "chunk_of_tensor * kChunk;", "static_cast<int32_t>(chunk_of_tensor * kChunk);", "plain", "huge",
        "the last chunk's offset",
    ),
    "sums what it read, not what it wrote": Mutant(
        "chunk_loops.cuh", "sums.written += after * after;", "sums.written += before * before;", "plain", "steps",
        "are not those of a norm pass",
    ),
    "adds up in the order of arrival": Mutant(
        "kernels.cuh",
        "if (threadIdx.x == 0) tables.sums[chunk] = sums;",
        "if (threadIdx.x == 0) tables.sums[header.launch.first_chunk + (chunk - header.launch.first_chunk + "
        "gridDim.x) % (header.launch.end_chunk - header.launch.first_chunk)] = sums;",
        "plain",
        "bits",
        "norms, ",
    ),
    "forgets that a step was skipped": Mutant(
        "kernels.cuh", "*header.found_inf != 0) return;", "*header.found_inf > 1) return;", "plain", "carried",
        "an overflow moved something",
    ),
    "takes a copy for aligned as its weights": Mutant(
        "chunk_loops.cuh", "vectors && allows_vectors(storage.copy);", "vectors;", "address", "steps",
        "misaligned address",
    ),
    "rounds weights and momentum alike": Mutant(
        "chunk_loops.cuh", "random >> 16);", "random);", "plain", "storage", "momentum "
    ),
    "rounds all chunks alike": Mutant(
        "kernels.cuh", "work.place = static_cast<uint32_t>(offset);", "", "plain", "storage", "weight "
    ),
    "rounds a NaN by chance": Mutant(
        "elements.cuh", "x != x ? (bits >> 16) | 0x40u : stochastic", "stochastic", "plain", "storage", "weight "
    ),
    "forgets the upper half of a place": Mutant(
        "kernels.cuh", "rounding_steps[t], offset);", "rounding_steps[t], work.place);", "plain", "huge", "weight 4294"
    ),
    "counts what was not rounded": Mutant(
        "kernels.cuh", "kMixed && tensor.stochastic) ++", "kMixed) ++", "plain", "storage", "got 6, 6, 8, 9, "
    ),
    "takes every update for the first": Mutant(
        "kernels.cuh", "!(tables.flags[t] & kStarted)", "true", "plain", "steps", "momentum "
    ),
    "does not count itself out": Mutant(
        "kernels.cuh", "if (threadIdx.x == 0) *tables.finished_blocks = 0;", "", "plain", "steps",
        "are not those of a norm pass",
    ),
}  # fmt: skip


@cache
def program(variant: str, mutant: str | None = None) -> list[str]:
    """Builds the test program, with a mistake in it if that is wanted, and returns the command that runs it."""
    if reason := why_not_emulated():
        give_up(reason, "cuda")
    prefix = prefix_for(variant, "cuda")
    step, tests, name = emulated_step(variant), emulated_tests(variant), "cuda_tests"
    if mutant:
        slug = re.sub(r"\W+", "_", mutant)
        csrc, name = mutated_sources(MUTANTS[mutant], BUILD_DIR / "mutants" / slug), f"cuda_tests_{slug}"
        # Compiles in half the time; but then GCC does not watch the copying of structs for races.
        flags = [] if variant == "thread" else ["-O0"]
        wrong = [emulated_step(variant, csrc), *emulated_tests(variant, csrc)]
        of_name = {item.output: replace(item, command=[*item.command, *flags]) for item in wrong}
        step, with_mistake = renamed(of_name[step.output], slug), of_name["huge_test.o"]
        tests = [renamed(with_mistake, slug) if item.output == with_mistake.output else item for item in tests]
    core = core_objects(compiler_for("cuda"), SANITIZERS[variant])  # which the cases are made for
    built = build(
        [step, *tests, *emulation_objects(variant), *core],
        output=name,
        linker=[*compiler_for("cuda"), *SANITIZERS[variant]],
        link_flags=OPENMP,
        build_dir=BUILD_DIR / f"cuda_{variant}",
    )
    return [*prefix, str(built)]


def mutated_sources(mutant: Mutant, folder: Path) -> Path:
    """A copy of csrc with a mistake in it."""
    for path in CSRC.rglob("*"):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        if path == CSRC / "cuda" / mutant.file:
            assert text.count(mutant.right) == 1, f"{mutant.file} has {text.count(mutant.right)} times {mutant.right!r}"
            text = text.replace(mutant.right, mutant.wrong)
        copy = folder / "csrc" / path.relative_to(CSRC)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.is_file() or copy.read_text(encoding="utf-8") != text:  # ninja goes by the time of writing
            copy.write_text(text, encoding="utf-8")
    return folder / "csrc"


@pytest.mark.parametrize(
    ("variant", "test"),
    [
        *[
            (variant, test)
            for variant in ("plain", "address")
            for test in ("steps", "bits", "carried", "storage", "huge")
        ],
        ("thread", "threads"),
    ],
)
def test_kernels(variant: str, test: str) -> None:
    done = run([*program(variant), test])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mistakes_are_noticed(mutant: str) -> None:
    wrong = MUTANTS[mutant]
    done = run([*program(wrong.variant, mutant), wrong.test])
    assert done.returncode != 0
    assert wrong.complaint in done.stdout
