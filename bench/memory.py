"""How much memory a step needs beside parameters, gradients and state: the growth of a process's peak resident set.

torch's own accounting knows nothing of what an extension allocates beside torch, and has no peak for the CPU. The
kernel's count of resident pages knows both. It can only grow, so each contender gets a process of its own, which
takes its first steps on a small network, for what libraries load and threads need, and then on the large one. What
the process has grown by since the parameters and gradients of the large one were there, less the state that is
kept, is what the steps needed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.cases import Setup, make_parameters, parameter_count, setup
from bench.contenders import GPU_CONTENDERS
from bench.gpu.command import python, run

STATUS = Path("/proc/self/status")
WARM_UP_CASE = "64x64"
STEPS = 3  # the first makes the state, those after it may need something beside all of it
SECONDS = 300


@dataclass(frozen=True)
class Memory:
    """What a contender keeps and needs, in bytes for each parameter.

    Attributes:
        contender: a key of `GPU_CONTENDERS`.
        state: kept from step to step, beside parameters and gradients.
        during_step: needed in addition during a step, at most.
    """

    contender: str
    state: float
    during_step: float


def measure_memory(contender: str, case: str, threads: int) -> Memory:
    """Take steps in a process of their own.

    Raises:
        RuntimeError: if the process failed, with what it said; on other systems than Linux.
    """
    if not STATUS.exists():
        raise RuntimeError("the peak resident set is only known on Linux")
    ended = run(python("-m", "bench.memory", contender, case, str(threads)), SECONDS)
    if not ended.ok:
        raise RuntimeError(ended.why())
    return Memory(**json.loads(ended.output.splitlines()[-1]))


def take_steps(contender: str, case: str, threads: int) -> Memory:
    """Take steps here, in a process that has done nothing else before."""
    warm_up = setup(WARM_UP_CASE, contender, threads=threads)
    for _ in range(STEPS):
        warm_up.step()
    parameters = make_parameters(case)
    before = peak_bytes()
    optimizer, step = GPU_CONTENDERS[contender](parameters)
    for _ in range(STEPS):
        step()
    grown = peak_bytes() - before
    state, count = Setup(parameters, optimizer, step).state_bytes(), parameter_count(case)
    return Memory(contender, state / count, (grown - state) / count)


def peak_bytes() -> int:
    """The largest resident set that this process has had; getrusage would tell that of its parent, if larger."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(fields["VmHWM"].removesuffix("kB"))


if __name__ == "__main__":
    print(json.dumps(asdict(take_steps(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
