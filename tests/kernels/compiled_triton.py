"""What Triton's compiler made of the kernels for a GPU that is not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from sasgd_fused.backends.triton import availability
from tests.kernels.cuda_code import Kernel, take_apart
from tests.kernels.native_programs import HUNG, give_up

ROOT = Path(__file__).parents[2]
CHUNK_KERNELS = ("step_kernel", "norm_kernel")
KERNELS = (*CHUNK_KERNELS, "finish_step_kernel", "finish_norm_kernel")
GRADIENT_KERNELS = ("gradient_kernel", "finish_gradient_kernel")  # in the relative scale besides

# Bytes of a weight and of a gradient that the step has loops for.
STEP_SIZES = ((4, 4), (2, 2), (2, 4), (2, 2), (2, 4))
ELEMENTS = 8  # of a thread in a tile

# What a loop of Triton's IR needs shared memory or other threads for.
EXCHANGE = re.compile(r"\bttg\.(convert_layout|local_\w+)|\btt\.(reduce|gather)\b")

# What the compiler's text must not have. Divisions in float64 have a v_fma_f64 of their own, where PTX has a div.
FORBIDDEN = {
    "ptx": {"contraction": r"\bfma\.\S+", "atomic": r"\b(atom|red)\.\S+"},
    "amdgcn": {"contraction": r"\bv_(pk_)?(fma|mac|mad|dot)\w*_b?f(16|32)(_\w+)?\b", "atomic": r"\b\w+_atomic_\w+"},
}
AMD_SPILLS = ("private_segment_fixed_size", "sgpr_spill_count", "vgpr_spill_count")


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


def compile_triton(target: str, what: str, *, folder: Path, program: str) -> Compiled:
    """Has a program, `triton_code` or its like, compile for a target into a folder.

    The folder should be empty, so that nothing is found that was compiled before.
    """
    if missing := availability._why_not_installed():
        give_up(missing, "triton")
    env = {**os.environ, "TRITON_CACHE_DIR": str(folder)}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", f"tests.kernels.{program}", target, what]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return Compiled(told["launches"], {name: Code(target, **facts) for name, facts in told["kernels"].items()})
