"""Absolute time of one step of every contender, and of what it costs on the host: `pytest bench/bench_step.py`.

Add `--benchmark-json=FILE` to keep the figures and `-k "ResNet and 1-threads"` to choose. The
ratios that the project quotes come from `python -m bench`: pytest-benchmark runs a contender to its
end before the next one, so on a machine that drifts its ratios do too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.cases import CASES, make_parameters, setup
from bench.contenders import OTHERS, OURS, TORCH, why_unavailable
from bench.machine import all_cores

ROUNDS = 30
# Slow: on these networks only.
ONLY_ON: dict[str, tuple[str, ...]] = {"reference": ("ResNet-50", "160x64"), "foreach": ("ResNet-50", "160x64")}
# pytorch_optimizer's LARS lets the gradients of vectors grow when they are not taken anew: on matrices alone.
ONLY_ON |= dict.fromkeys(OTHERS, ("160x64",))


@pytest.mark.filterwarnings("ignore:Parameter `foreach` is deprecated:DeprecationWarning")  # optimi
@pytest.mark.parametrize("threads", sorted({1, all_cores()}), ids="{}-threads".format)
@pytest.mark.parametrize(
    ("case", "contender"),
    [
        (case, contender)
        for case in CASES
        for contender in (*TORCH, *OURS, *OTHERS)
        if case in ONLY_ON.get(contender, CASES)
    ],
)
def test_step(benchmark: BenchmarkFixture, case: str, contender: str, threads: int) -> None:
    if reason := why_unavailable(contender):
        pytest.skip(reason)
    made = setup(case, contender, threads=threads)
    benchmark.group = f"{case}, {threads} threads"
    benchmark.extra_info["bytes"] = made.step_bytes()
    benchmark.pedantic(made.step, rounds=ROUNDS, warmup_rounds=3)  # type: ignore[no-untyped-call]
    made.check_values()


class Empty(torch.optim.Optimizer):
    def step(self) -> None:  # type: ignore[override]
        pass


EMPTY = Empty([torch.zeros(1)], {})
# What a step does or could do before the kernel, with parameters and gradients.
ON_HOST: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], object]] = {
    "torch's wrapper around step": lambda params, grads: EMPTY.step(),
    "grad of each": lambda params, grads: [param.grad for param in params],
    "data_ptr of each, mapped over the list": lambda params, grads: list(map(Tensor.data_ptr, grads)),
    "data_ptr of each, by a comprehension": lambda params, grads: [grad.data_ptr() for grad in grads],
    "is_contiguous of each": lambda params, grads: all(map(Tensor.is_contiguous, grads)),
    "stride of each": lambda params, grads: list(map(Tensor.stride, grads)),
    "_version of each": lambda params, grads: sum(param._version for param in params),
    "increment_version of all": lambda params, grads: torch.autograd.graph.increment_version(params),
}


@pytest.mark.benchmark(group="host, 160 matrices of 64 elements")
@pytest.mark.parametrize("part", ON_HOST)
def test_host(benchmark: BenchmarkFixture, part: str) -> None:
    params = make_parameters("160x64")
    benchmark(ON_HOST[part], params, [param.grad for param in params])
