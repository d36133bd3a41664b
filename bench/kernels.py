"""Times the CPU kernels alone, variants in turns over the same tensors: `python -m bench.kernels`.

Where arrays lie may weigh more than what is compared, so all variants of a kind of step work on the same ones.
What is timed is `CpuPlan.step`: the schedule and the kernels, and nothing of the optimizer in Python. A variant is an
instruction set and a prefetch distance. To compare two versions of csrc/cpu/step_kernel.cpp, compile the other one as
one more instruction set.
"""

from __future__ import annotations

import argparse
import statistics
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from bench.cases import CASES, GRID_CASES, make_parameters
from bench.clocks import CpuClock
from bench.contenders import LR, MOMENTUM, WEIGHT_DECAY
from bench.machine import machine
from bench.rows import DTYPES
from bench.turns import Spread, paired_ratios, time_in_turns
from sasgd_fused import _C
from sasgd_fused.backends.device_state import CarriedState


@dataclass(frozen=True)
class Kind:
    """How tensors are stored, and which sums a step takes."""

    dtype: str = "float32"
    small_momentum: bool = False
    stochastic: bool = False
    track_norms: bool = True
    relative: bool = False


KINDS = {
    "float32": Kind(),
    "frozen": Kind(track_norms=False),
    "relative": Kind(relative=True),
    "bfloat16": Kind("bfloat16"),
    "float16": Kind("float16"),
    "bfloat16 momentum": Kind(small_momentum=True),
    "stochastic momentum": Kind(small_momentum=True, stochastic=True),
    "stochastic bfloat16": Kind("bfloat16", stochastic=True),
}
# The processor's own first.
DISTANCES = list(dict.fromkeys([_C.prefetch_distance(), 0, 64, 256, 512]))


def make_step(case: str, kind: Kind) -> Callable[[], object]:
    """Returns the step of a plan with tensors of its own, on the threads that torch has."""
    weights = make_parameters(case, DTYPES[kind.dtype])
    grads = [weight.grad for weight in weights if weight.grad is not None]
    buffers = [torch.zeros_like(grad, dtype=torch.bfloat16 if kind.small_momentum else None) for grad in grads]
    code = list(DTYPES).index(kind.dtype)
    matrices = [(index, weight) for index, weight in enumerate(weights) if weight.ndim > 1]
    plan = _C.CpuPlan(
        tensors=[(weight.numel(), 0, code) for weight in weights],
        layers=[(i, True, float(len(w)), w.numel() / len(w), 1.0, False) for i, w in matrices],
        eps=1e-3,
        shape_decay=False,
        track_norms=kind.track_norms,
        relative=kind.relative,
        precision=[(0, kind.small_momentum, kind.stochastic, stream) for stream in range(len(weights))],
        threads=torch.get_num_threads,
    )
    carried = {name: torch.zeros(len(weights), dtype=torch.int64) for name in CarriedState._fields}
    plan.attach(**{name: memory.data_ptr() for name, memory in carried.items()})
    plan.place(_addresses(weights), _addresses(buffers), array("Q", [0] * len(weights)))
    plan.measure(b"\1" * len(matrices))
    gradients, dtypes = _addresses(grads), array("B", [code] * len(grads))
    values = array("d", [LR, MOMENTUM, 0.0, WEIGHT_DECAY, 0.0, 0.0])

    def step(_: object = (weights, grads, buffers, carried)) -> None:  # which the plan only has addresses of
        plan.step(gradients, dtypes, values, {}, None, None)

    return step


def _addresses(tensors: Sequence[Tensor]) -> array[int]:
    return array("Q", [tensor.data_ptr() for tensor in tensors])


def with_variant(step: Callable[[], object], instruction_set: str, distance: int) -> Callable[[], int]:
    """Returns a timer of a step by a variant."""
    take, _ = CpuClock().timer(step)

    def timed() -> int:
        _C.use_instruction_set(instruction_set)
        _C.use_prefetch_distance(distance)
        return take()

    return timed


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table of medians, and of each variant's ratios to the first."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels", description="CPU kernels alone, variants in turns."
    )
    parser.add_argument("--networks", nargs="+", choices=[*CASES, *GRID_CASES], default=["VGG13-CIFAR"], metavar="NAME")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["float32"])
    parser.add_argument("--instruction-sets", nargs="+", default=_C.instruction_sets()[:1])
    parser.add_argument("--distances", type=int, nargs="+", default=DISTANCES,
                        help="of the prefetch, in elements")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60, help="at least so many")
    parser.add_argument("--seconds", type=float, default=1, help="at least so long")
    chosen = parser.parse_args(arguments)
    if len(chosen.kinds) * len(chosen.instruction_sets) * len(chosen.distances) < 2:
        parser.error("got one variant, want two or more to take turns")
    torch.set_num_threads(chosen.threads)
    print(", ".join(f"{key}: {fact}" for key, fact in machine("cpu").items()))
    print("\n| network | kind | instruction set | prefetch | µs | against the first [20 %, 80 %] |")
    print("|---|---|---|---:|---:|---:|")
    for network in chosen.networks:
        timers = {}
        for kind in chosen.kinds:
            step = make_step(network, KINDS[kind])
            for instruction_set, distance in product(chosen.instruction_sets, chosen.distances):
                timers[f"{kind} | {instruction_set} | {distance}"] = with_variant(step, instruction_set, distance)
        times = time_in_turns(timers, chosen.rounds, chosen.seconds)
        first = next(iter(times.values()))
        for name, samples in times.items():
            ratio = Spread.of(paired_ratios(samples, first))
            print(f"| {network} | {name} | {statistics.median(samples) / 1e3:.1f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
