"""Print what a step costs on the host before and beside the kernel: `python -m bench.host`.

160 matrices of 64 elements on one thread. Each figure is the least of nine averages: what is timed runs in
microseconds, and whatever else the machine does can only add to it.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

import torch
from torch import Tensor

from bench.cases import setup
from sasgd_fused import ScaleAmendedSGD

REPEATS, CALLS = 9, 500


def microseconds(call: Callable[[], object]) -> float:
    """Time a call."""
    return min(timeit.repeat(call, number=CALLS, repeat=REPEATS)) / CALLS * 1e6


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    theirs, ours = setup("160x64", "torch fused", threads=1), setup("160x64", "native", threads=1)
    optimizer = ours.optimizer
    assert isinstance(optimizer, ScaleAmendedSGD)
    params = optimizer.param_groups[0]["params"]
    grads = [param.grad for param in params]

    class Empty(torch.optim.Optimizer):
        def step(self) -> None:  # type: ignore[override]
            pass

    parts: dict[str, Callable[[], object]] = {
        "step, torch.optim.SGD(fused=True)": theirs.step,
        "step, ScaleAmendedSGD, native": ours.step,
        "torch's wrapper around step": Empty([torch.zeros(1)], {}).step,
        "grad of each": lambda: [param.grad for param in params],
        "data_ptr of each, mapped over the list": lambda: list(map(Tensor.data_ptr, grads)),
        "data_ptr of each, by a comprehension": lambda: [grad.data_ptr() for grad in grads],
        "is_contiguous of each": lambda: all(map(Tensor.is_contiguous, grads)),
        "stride of each": lambda: list(map(Tensor.stride, grads)),
        "_version of each": lambda: sum(param._version for param in params),
        "increment_version of all": lambda: torch.autograd.graph.increment_version(params),
    }
    for name, call in parts.items():
        print(f"{microseconds(call):8.1f} us  {name}")


if __name__ == "__main__":
    main()
