"""What the compiler made of the kernels: registers, memory accesses, no atomics on floats. Needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.kernels.native_programs import compiler_for, give_up, run
from tests.kernels.toolchain import cuda_toolkit
from tools.cuda import ARCHITECTURES, nvcc_command
from tools.native_core import CSRC

CUDA_SOURCES = Path(__file__).parent / "cuda"
TRIED = (80, 90, 100)
# Warnings of the assembler too.
STRICT = ["-Xptxas", "-warn-spills,-warn-lmem-usage", "-Werror", "all-warnings"]

# What the architectures have alike.
REGISTERS_OF_MULTIPROCESSOR = 65536
REGISTERS_UNIT = 256  # a warp gets a multiple of it
WARP = 32
# And what not: warps and shared memory of a multiprocessor.
WARPS = {75: 32, 80: 64, 90: 64, 100: 64, 120: 48}
SHARED_MEMORY = {75: 64 * 1024, 80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024, 120: 100 * 1024}
SHARED_MEMORY_OF_SYSTEM = 1024  # of each thread block, besides its own

# With that many, and 64 registers at the most, loads are on their way from enough threads.
RESIDENT_BLOCKS = 4

# Instructions that a kernel must not have. A generic access has to find out what kind of memory it goes to. Where there
# is no instruction for an atomic operation, it compares and swaps. FFMA with a zero belongs to divisions in float64.
FORBIDDEN = {
    "generic access": r"(LD|ST)\b",
    "local memory": r"(LDL|STL)\b",
    "atomic on floats": r"(ATOM|ATOMG|ATOMS|RED|REDG)\..*\b(B?F(16|32|64)|CAST?\b)",
    "contraction": r"FFMA2?\b(?!.*\bRZ\b)",
}

VECTORS = [f"{access}.E.{bits}" for access in ("LDG", "STG") for bits in (128, 64)]


@dataclass
class Kernel:
    """A kernel as compiled for one architecture."""

    architecture: int
    name: str
    registers: int
    stack: int
    shared: int
    local: int
    instructions: list[str] = field(default_factory=list, repr=False)

    def count(self, opcode: str) -> int:
        return sum(re.match(rf"{re.escape(opcode)}\b", instruction) is not None for instruction in self.instructions)

    def complaints(self) -> dict[str, list[str]]:
        """What must not be there, by its kind."""
        found = {
            kind: [instruction for instruction in self.instructions if re.match(pattern, instruction)]
            for kind, pattern in FORBIDDEN.items()
        }
        found |= {name: [f"{value} bytes"] for name in ("stack", "local") if (value := getattr(self, name))}
        return {kind: instructions for kind, instructions in found.items() if instructions}

    def resident_blocks(self, threads: int) -> int:
        """Thread blocks that a multiprocessor holds at once."""
        warps = threads // WARP
        registers = -(-self.registers * WARP // REGISTERS_UNIT) * REGISTERS_UNIT
        shared = self.shared if self.architecture >= 90 else self.shared + SHARED_MEMORY_OF_SYSTEM
        return min(
            REGISTERS_OF_MULTIPROCESSOR // registers // warps,
            WARPS[self.architecture] // warps,
            SHARED_MEMORY[self.architecture] // shared,
        )


def compile_cuda(source: Path, output: Path, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """The extension's kernels for all its architectures, what the gates are tested on for some."""
    architectures = ARCHITECTURES if source.is_relative_to(CSRC) else TRIED
    command = nvcc_command(cuda_toolkit(), compiler_for("cuda"), architectures)
    return run([*command, *flags, "-I", str(CSRC), "-c", str(source), "-o", str(output)])


def cuobjdump() -> str:
    """The program that takes compiled code apart: the toolkit's own, or that of a Python package."""
    folders = [folder.parent / "bin" for folder in cuda_toolkit().includes]
    for packages in map(Path, site.getsitepackages()):
        folders += [*packages.glob("nvidia/cu*/bin"), packages / "triton/backends/nvidia/bin"]
    program = shutil.which("cuobjdump", path=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))
    if program is None:
        give_up("no cuobjdump was found (the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm have it)", "cuda")
    return program


def take_apart(compiled: Path) -> list[Kernel]:
    done = run([cuobjdump(), "--dump-resource-usage", "--dump-sass", str(compiled)])
    assert done.returncode == 0, done.stdout
    kernels: dict[tuple[int, str], Kernel] = {}
    architecture, name = 0, ""
    for line in done.stdout.splitlines():
        if found := re.match(r"arch = sm_(\d+)", line):
            architecture = int(found[1])
        elif found := re.match(r"\s*Function\s*:?\s*(\w+)", line):
            name = found[1]
        elif found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            kernels[architecture, name] = Kernel(architecture, name, *map(int, found.groups()))
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z].*?) ?;", line):
            kernels[architecture, name].instructions.append(found[1])
    assert all(kernel.instructions for kernel in kernels.values()), done.stdout
    return list(kernels.values())


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
        assert any("step_kernel" in name for name in names), names
        assert any("norm_kernel" in name for name in names), names
        assert sum(map(is_mixed, names)) == 1, names
    complaints = {
        (kernel.architecture, kernel.name, kind): f"{len(instructions)}, the first: {instructions[0]}"
        for kernel in kernels
        for kind, instructions in kernel.complaints().items()
    }
    assert not complaints


def is_mixed(name: str) -> bool:
    """Whether a kernel is that of plans whose tensors are not all stored in the ordinary way."""
    return re.search(r"step_kernelILi\d+ELb1E", name) is not None


def test_registers_and_occupancy_are_printed(kernels: list[Kernel], capsys: pytest.CaptureFixture[str]) -> None:
    constant = re.search(r"kThreads = (\d+);", (CSRC / "cuda/tables.h").read_text(encoding="utf-8"))
    assert constant is not None
    threads = int(constant[1])
    with capsys.disabled():
        print(f"\nRegisters, shared memory, and thread blocks of {threads} that a multiprocessor holds:")
        for kernel in kernels:
            blocks = kernel.resident_blocks(threads)
            assert blocks >= RESIDENT_BLOCKS, kernel
            name = re.sub(r".*?(\w{4}_kernel)ILi(\d+)E.*", r"\1<\2>", kernel.name)
            if is_mixed(kernel.name):
                name += " (mixed)"
            share = blocks * threads / (WARPS[kernel.architecture] * WARP)
            print(
                f"  sm_{kernel.architecture} {name}: {kernel.registers} registers, {kernel.shared} bytes, "
                f"{blocks} blocks, {share:.0%} of the threads"
            )


def loop_vectors(name: str) -> Counter[str]:
    """How often a loop of loops.cu loads and stores 16 or 8 bytes: each of its threads takes eight elements at a time.

    It takes as many to a vector as make 16 bytes of weights.
    """
    weight, grad, momentum, *kind = name.split("_")
    sizes = {"float": 4, "bfloat": 2, "half": 2}
    copies = ["bfloat", "half"] if kind == ["mixed"] and weight == "float" else []
    counts: Counter[str] = Counter()
    for access, dtypes in (("LDG", [weight, grad, momentum]), ("STG", [weight, momentum, *copies])):
        for size in (sizes[dtype] for dtype in dtypes if dtype != "none"):
            vector = min(16, 16 // sizes[weight] * size)
            counts[f"{access}.E.{8 * vector}"] += 8 * size // vector
    return counts


def test_loops_load_and_store_16_or_8_bytes_at_a_time(kernels: list[Kernel], folder: Path) -> None:
    loops = compiled_kernels(CUDA_SOURCES / "loops.cu", folder, STRICT)
    assert len(loops) == (15 + 17) * len(TRIED)
    for architecture in TRIED:
        wanted = {mixed: Counter[str]() for mixed in (False, True)}
        for loop in (loop for loop in loops if loop.architecture == architecture):
            mixed = loop.name.endswith("_mixed")
            vectors = loop_vectors(loop.name)
            counts = Counter({access: loop.count(access) for access in VECTORS})
            # A compiler may make several of a mixed loop, with and without a copy.
            assert counts >= vectors if mixed else counts == vectors, f"sm_{architecture} {loop.name}: {counts}"
            assert not loop.complaints(), loop
            wanted[mixed] += vectors
        for kernel in kernels:
            if kernel.architecture == architecture and "step_kernel" in kernel.name:
                # It has all these loops, and some more such accesses to its tables.
                counts = Counter({access: kernel.count(access) for access in VECTORS})
                assert counts >= wanted[is_mixed(kernel.name)], f"sm_{architecture} {kernel.name}: {counts}"


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
