"""What the compiler made of the kernels: registers, memory accesses, no atomics on floats. Needs no GPU."""

from __future__ import annotations

import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kernels.cuda_code import WARP, WARPS, Kernel, cuobjdump, take_apart
from tests.kernels.native_programs import compiler_for, run
from tests.kernels.toolchain import cuda_toolkit
from tools.cuda import ARCHITECTURES, nvcc_command
from tools.native_core import CSRC

# One worker compiles for all.
pytestmark = [pytest.mark.kernels, pytest.mark.xdist_group("cuda code")]

CUDA_SOURCES = Path(__file__).parent / "cuda"
TRIED = (80, 90, 100)
# Warnings of the assembler too.
STRICT = ["-Xptxas", "-warn-spills,-warn-lmem-usage", "-Werror", "all-warnings"]

# With that many, and 64 registers at the most, loads are on their way from enough threads.
RESIDENT_BLOCKS = 4

# Global loads in a row before a thread block's first element: the flag of an overflow, the chunk's entry, what it leads
# to; and what these decide on.
LOOK_UP = {"": 3, "mixed": 4, "relative": 4, "mixed relative": 5}

VECTORS = [f"{access}.E.{bits}" for access in ("LDG", "STG") for bits in (128, 64)]


def compile_cuda(source: Path, output: Path, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """The extension's kernels for all its architectures, what the gates are tested on for some."""
    architectures = ARCHITECTURES if source.is_relative_to(CSRC) else TRIED
    command = nvcc_command(cuda_toolkit(), compiler_for("cuda"), architectures)
    return run([*command, *flags, "-I", str(CSRC), "-c", str(source), "-o", str(output)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda code")


def compiled_kernels(source: Path, folder: Path, flags: Sequence[str] = ()) -> list[Kernel]:
    """The kernels of a source."""
    cuobjdump()  # rather before the compiler has run for nothing
    output = folder / f"{source.stem}.o"
    done = compile_cuda(source, output, flags)
    assert done.returncode == 0, done.stdout
    return take_apart(output)


@pytest.fixture(scope="module")
def kernels(folder: Path) -> list[Kernel]:
    """The kernels of the extension, compiled with warnings as errors."""
    return compiled_kernels(CSRC / "cuda/step.cu", folder, STRICT)


def test_kernels_keep_to_registers_and_global_memory(kernels: list[Kernel]) -> None:
    for architecture in ARCHITECTURES:
        names = [kernel.name for kernel in kernels if kernel.architecture == architecture]
        assert any("norm_kernel" in name for name in names), names
        kinds = Counter(kind for name in names if (kind := kind_of(name)) is not None)
        assert kinds == {"": 2, "mixed": 1, "relative": 1, "mixed relative": 1, "gradient": 1}, names
    complaints = {
        (kernel.architecture, kernel.name, kind): f"{len(instructions)}, the first: {instructions[0]}"
        for kernel in kernels
        for kind, instructions in kernel.complaints().items()
    }
    assert not complaints


def kind_of(name: str) -> str | None:
    """What a kernel is for: a step, in mixed precision or not, in the relative scale or not; or norms of gradients."""
    if found := re.search(r"step_kernelILi\d+ELb(\d)ELb(\d)E", name):
        return " ".join(word for word, flag in zip(("mixed", "relative"), found.groups(), strict=True) if flag == "1")
    return "gradient" if "gradient_kernel" in name else None


def kind_of_loop(name: str) -> str:
    """The same of a loop of loops.cu."""
    return " ".join(word for word in ("mixed", "relative", "gradient") if word in name.split("_"))


def test_registers_and_occupancy_are_printed(kernels: list[Kernel], capsys: pytest.CaptureFixture[str]) -> None:
    constant = re.search(r"kThreads = (\d+);", (CSRC / "cuda/tables.h").read_text(encoding="utf-8"))
    assert constant is not None
    threads = int(constant[1])
    with capsys.disabled():
        print(f"\nRegisters, shared memory, and thread blocks of {threads} that a multiprocessor holds:")
        for kernel in kernels:
            blocks = kernel.resident_blocks(threads)
            assert blocks >= RESIDENT_BLOCKS, kernel
            name = re.sub(r".*?([a-z]+_kernel)ILi(\d+)E.*", r"\1<\2>", kernel.name)
            if kind := kind_of(kernel.name):
                name += f" ({kind})"
            share = blocks * threads / (WARPS[kernel.architecture] * WARP)
            print(
                f"  sm_{kernel.architecture} {name}: {kernel.registers} registers, {kernel.shared} bytes, "
                f"{blocks} blocks, {share:.0%} of the threads"
            )


def test_a_chunk_is_looked_up_by_few_loads_in_a_row(kernels: list[Kernel]) -> None:
    steps = [(kernel, kind) for kernel in kernels if (kind := kind_of(kernel.name)) in LOOK_UP]
    chains = {(kernel.architecture, kind): kernel.dependent_loads() for kernel, kind in steps}
    assert len(chains) == len(LOOK_UP) * len(ARCHITECTURES)
    assert not {place: loads for place, loads in chains.items() if loads > LOOK_UP[place[1] or ""]}


def loop_vectors(name: str) -> Counter[str]:
    """How often a loop of loops.cu loads and stores 16 or 8 bytes: each of its threads takes eight elements at a time.

    It takes as many to a vector as make 16 bytes of weights.
    """
    weight, grad, momentum, *_ = name.split("_")
    sizes = {"float": 4, "bfloat": 2, "half": 2}
    kind = kind_of_loop(name)
    copies = ["bfloat", "half"] if "mixed" in kind and weight == "float" else []
    written = [] if kind == "gradient" else [weight, momentum, *copies]
    counts: Counter[str] = Counter()
    for access, dtypes in (("LDG", [weight, grad, momentum]), ("STG", written)):
        for size in (sizes[dtype] for dtype in dtypes if dtype in sizes):
            vector = min(16, 16 // sizes[weight] * size)
            counts[f"{access}.E.{8 * vector}"] += 8 * size // vector
    return counts


def test_loops_load_and_store_16_or_8_bytes_at_a_time(kernels: list[Kernel], folder: Path) -> None:
    loops = compiled_kernels(CUDA_SOURCES / "loops.cu", folder, STRICT)
    assert len(loops) == (2 * (15 + 17) + 7) * len(TRIED)
    for architecture in TRIED:
        wanted: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for loop in (loop for loop in loops if loop.architecture == architecture):
            kind, vectors = kind_of_loop(loop.name), loop_vectors(loop.name)
            counts = Counter({access: loop.count(access) for access in VECTORS})
            # A compiler may make several of a mixed loop, with and without a copy.
            is_as_wanted = counts >= vectors if "mixed" in kind else counts == vectors
            assert is_as_wanted, f"sm_{architecture} {loop.name}: {counts}"
            assert not loop.complaints(), loop
            wanted[kind] += vectors
        for kernel in (kernel for kernel in kernels if kernel.architecture == architecture):
            if (kind_of_kernel := kind_of(kernel.name)) is not None:
                # It has all these loops, and some more such accesses to its tables.
                counts = Counter({access: kernel.count(access) for access in VECTORS})
                assert counts >= wanted[kind_of_kernel], f"sm_{architecture} {kernel.name}: {counts}"


def test_compiler_refuses_spills_and_local_memory(tmp_path: Path) -> None:
    done = compile_cuda(CUDA_SOURCES / "forbidden.cu", tmp_path / "forbidden.o", STRICT)
    assert done.returncode != 0
    assert "Registers are spilled to local memory in function 'spills'" in done.stdout
    assert "Local memory used for function 'local_memory'" in done.stdout


def test_complaints_are_made_of_what_is_forbidden(folder: Path) -> None:
    kernels = compiled_kernels(CUDA_SOURCES / "forbidden.cu", folder)
    kinds = {(kernel.name, kernel.architecture): kernel.complaints().keys() for kernel in kernels}
    expected = {
        "clean": set[str](),
        "atomic_on_integers": set[str](),
        "contraction": {"contraction"},
        "generic_load": {"generic access"},
        "generic_store": {"generic access"},
        "local_memory": {"local memory", "stack"},
        "spills": {"local memory", "stack"},
        "atomic_float": {"atomic on floats"},
        "atomic_float_with_result": {"atomic on floats"},
        "atomic_double": {"atomic on floats"},
        "atomic_in_shared_memory": {"atomic on floats"},
    }
    assert kinds == {(name, number): kind for name, kind in expected.items() for number in TRIED}
