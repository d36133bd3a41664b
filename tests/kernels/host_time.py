"""What a CUDA step costs on the host, without a GPU: `python -m tests.kernels.host_time`.

Everything but the launch is what runs on a machine with a GPU, from the optimizer's step to the kernel's arguments; the
emulation keeps the launch and does not run it. torch's fused step on the CPU takes turns with it, on the same tensors.
The figures are processor time of the one thread, so that a busy machine disturbs them less.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from time import thread_time_ns
from unittest.mock import patch

import torch

from bench.cases import shapes_of
from bench.contenders import CONTENDERS, GRADIENT_SCALE, LR, MOMENTUM, WEIGHT_DECAY
from bench.report import table
from bench.turns import Spread, paired_ratios, time_in_turns
from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import BACKENDS, Entry
from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.fused import FusedBackend
from sasgd_fused.plan import State, StepPlan
from tests.kernels.emulated_cuda import EmulatedCudaKernel, emulated_module, why_not

BACKEND = "emulated cuda, not launched"
OURS, TORCH = "ours", "torch fused"
SIDE = 8  # of the tensors at most, so that torch's arithmetic takes next to nothing
STEPS = 20  # timed together


class UnlaunchedKernel(EmulatedCudaKernel):
    """Puts its launches on a stream that keeps them, which the host does not take for a graph."""

    def stream(self) -> int | None:
        super().stream()
        return self.raw_stream()


def _make(plan: StepPlan, state: State) -> Backend:
    return FusedBackend(plan, state, BACKEND, UnlaunchedKernel)


def parameters(network: str) -> list[torch.Tensor]:
    """Makes as many small matrices and vectors as a network has, with gradients."""
    made = [torch.ones([min(side, SIDE) for side in shape[:2]]).requires_grad_() for shape in shapes_of(network)]
    for parameter in made:
        parameter.grad = torch.full_like(parameter, GRADIENT_SCALE)
    return made


def our_step(params: list[torch.Tensor]) -> Callable[[], object]:
    """Returns a warm step, whose launch a capture of the emulation keeps."""
    with patch.dict(BACKENDS, {BACKEND: Entry(why_not, _make)}):
        optimizer = ScaleAmendedSGD(params, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, backend=BACKEND)
        for _ in range(3):
            optimizer.step()
    return optimizer.step


def timer(step: Callable[[], object]) -> Callable[[], int]:
    """Returns a call that takes some steps and returns what one took, in nanoseconds of processor time."""

    def take() -> int:
        emulated_module().begin_capture(UnlaunchedKernel.current_stream)  # forgets the launches that it has kept
        start = thread_time_ns()
        for _ in range(STEPS):
            step()
        return (thread_time_ns() - start) // STEPS

    return take


def measure(network: str, rounds: int) -> str:
    """Returns a table of both, and of torch's step beside itself."""
    steps = {OURS: our_step(parameters(network))}
    steps |= {name: CONTENDERS[TORCH](parameters(network))[1] for name in (TORCH, "control")}
    try:
        times = time_in_turns({name: timer(step) for name, step in steps.items()}, rounds, seconds=0)
    finally:
        emulated_module().end_capture(UnlaunchedKernel.current_stream)
    lines = [
        [name, f"{statistics.median(times[name]) / 1e3:.0f} µs", f"{Spread.of(paired_ratios(times[name], against))}"]
        for name, against in ((OURS, times[TORCH]), (TORCH, times["control"]))
    ]
    return table(f"{network}, {len(shapes_of(network))} tensors|host|ratio to torch's [20 %, 80 %]", "lrr", lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.host_time", description="A step's time on the host.")
    parser.add_argument("--network", default="ResNet-50", metavar="NAME", help="of the benchmark, default ResNet-50")
    parser.add_argument("--rounds", type=int, default=50, help=f"of {STEPS} steps each, default 50")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(measure(chosen.network, chosen.rounds))


if __name__ == "__main__":
    main()
