"""Compiled CUDA kernels, taken apart: registers, memory, instructions, and those that must not be there."""

from __future__ import annotations

import os
import re
import shutil
import site
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.kernels.native_programs import give_up, run
from tests.kernels.toolchain import cuda_toolkit

# What the architectures have alike.
REGISTERS_OF_MULTIPROCESSOR = 65536
REGISTERS_UNIT = 256  # a warp gets a multiple of it
WARP = 32
# And what not: warps and shared memory of a multiprocessor.
WARPS = {75: 32, 80: 64, 90: 64, 100: 64, 120: 48}
SHARED_MEMORY = {75: 64 * 1024, 80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024, 120: 100 * 1024}
SHARED_MEMORY_OF_SYSTEM = 1024  # of each thread block, besides its own

# Instructions that a kernel must not have. A generic access has to find out what kind of memory it goes to. Where there
# is no instruction for an atomic operation, it compares and swaps. FFMA with a zero belongs to divisions in float64.
FORBIDDEN = {
    "generic access": r"(LD|ST)\b",
    "local memory": r"(LDL|STL)\b",
    "atomic on floats": r"(ATOM|ATOMG|ATOMS|RED|REDG)\..*\b(B?F(16|32|64)|CAST?\b)",
    "contraction": r"FFMA2?\b(?!.*\bRZ\b)",
}

REGISTER = re.compile(r"\bU?[RP]\d+\b")
TWO_WORDS = r"\.(64|WIDE|F64\.F32)\b|^(D[A-Z]|CS2R)"  # what writes two registers


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
    guards: list[str] = field(default_factory=list, repr=False)  # of each: the predicate that it depends on, or nothing

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

    def dependent_loads(self) -> int:
        """How many global loads come one after the other, each waiting for the one before, up to the first barrier.

        A load waits for the loads that its address comes from, and for those that decided whether to go on to it.
        """
        waits: Counter[str] = Counter()  # by the register: loads that were waited for until it was written
        decided = 0
        for guard, instruction in zip(self.guards, self.instructions, strict=True):
            opcode, *operands = re.split(r"[ ,]+", instruction)
            if opcode.startswith("BAR"):
                break
            written = 0 if opcode.startswith(("ST", "BRA", "EXIT", "CALL")) else 1
            if written and len(operands) > 1 and re.fullmatch(r"U?P(\d|T)", operands[1]):
                written = 2  # a predicate as well
            depth = max([decided, *(waits[name] for name in REGISTER.findall(" ".join([guard, *operands[written:]])))])
            if opcode.startswith(("BRA", "EXIT")):
                decided = depth
            depth += opcode.startswith("LDG")
            for kind, number in re.findall(r"\b(U?[RP])(\d+)\b", " ".join(operands[:written])):
                for word in range(4 if ".128" in opcode else 2 if re.search(TWO_WORDS, opcode) else 1):
                    waits[f"{kind}{int(number) + word}"] = depth
        return max(waits.values())

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
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+ )?\s*([A-Z].*?) ?;", line):
            kernels[architecture, name].guards.append(found[1] or "")
            kernels[architecture, name].instructions.append(found[2])
    assert all(kernel.instructions for kernel in kernels.values()), done.stdout
    return list(kernels.values())
