"""How much memory a step needs beside parameters, gradients and state: the growth of a process's peak.

On a CPU that is the peak of the resident set: torch's own accounting knows nothing of what an extension allocates
beside torch. A peak can only grow, so each contender gets a process of its own, which takes its first steps on a small
network, for what libraries load and threads need, and then on the large one. What the process has grown by since the
parameters and gradients of the large one were there, less the state that is kept, is what the steps needed. On a GPU
the same process counts launches: nothing is timed in it that a profiler could slow down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.cases import Setup, make_parameters, parameter_count, setup
from bench.child import Child
from bench.clocks import clock_for, count_launches
from bench.contenders import CONTENDERS
from bench.rows import MEMORY_CASE

WARM_UP_CASE = "64x64"
STEPS = 3  # the first makes the state, those after it may need something beside all of it
LIMIT_S = 600


@dataclass(frozen=True)
class Memory:
    """What a contender keeps and needs, in bytes for each parameter.

    Attributes:
        contender: a key of `CONTENDERS`.
        state: kept from step to step, beside parameters and gradients.
        during_step: needed in addition during a step, at most.
        launches: what a GPU is given to do in a step, see `clocks.count_launches`.
    """

    contender: str
    state: float
    during_step: float
    launches: Mapping[str, int] | None = None


def measure_memory(contender: str, threads: int, device: str, case: str = MEMORY_CASE) -> Memory:
    """Takes steps in a process of their own.

    Raises:
        CallFailed, ProcessLost: the steps failed; on a CPU, on other systems than Linux.
    """
    with Child() as child:
        return child.call(LIMIT_S, take_steps, contender, case, threads, device)


def take_steps(contender: str, case: str, threads: int, device: str) -> Memory:
    """Takes steps here, in a process that has done nothing else before."""
    warm_up = setup(WARM_UP_CASE, contender, threads=threads, device=device)
    for _ in range(STEPS):
        warm_up.step()
    parameters = make_parameters(case, device=device)
    before = clock_for(device).peak_bytes()
    optimizer, step = CONTENDERS[contender](parameters)
    for _ in range(STEPS):
        step()
    grown = clock_for(device).peak_bytes() - before
    state, count = Setup(parameters, optimizer, step).state_bytes(), parameter_count(case)
    launches = count_launches(step) if device == "cuda" else None
    return Memory(contender, state / count, (grown - state) / count, launches)
