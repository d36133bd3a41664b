"""Absolute time of one step of every contender: `pytest bench/bench_step.py`.

Add `--benchmark-json=FILE` to keep the figures and `-k "ResNet and 1-threads"` to choose. The
ratios that the project quotes come from `python -m bench`: pytest-benchmark runs a contender to its
end before the next one, so on a machine that drifts its ratios do too.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import CASES, setup
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
