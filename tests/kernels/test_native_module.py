"""The compiled module steps as it is told, carries what it left, and computes the same everywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import LOW_PRECISION, Case, cpu_only
from tests.kernels.native_step import NORM_KEPT, PRECISION, STARTED, Step
from tests.unchanged import bits

pytestmark = cpu_only("its kernel, instruction sets and threads")


def test_step_of_the_module(core: Any) -> None:
    step = Step(core).attach()
    assert step.row_norm_sq.tolist() == [3.0]
    assert step.plan.step(**step.arguments) == 0
    assert step.plan.steps == 1
    assert step.flags.tolist() == [STARTED, STARTED]
    assert all(bool((weight < 1).all()) for weight in step.weights)
    assert step.sum_squares[0] == 2 * step.row_norm_sq[0] != 6.0
    assert step.plan.is_on_host
    assert (step.plan.stream(), step.plan.memory()) == (None, [])


def test_step_of_a_master(core: Any) -> None:
    """Its parameter is written; a gradient of the parameter's dtype is taken too."""
    step = Step(core, PRECISION).attach()
    grad = step.grads[0].bfloat16()
    step.arguments["grads"][0], step.arguments["grad_dtypes"][0] = grad.data_ptr(), 1
    step.plan.step(**step.arguments)
    assert bool((step.weights[0] < 1).all())
    assert torch.equal(step.params[0], step.weights[0].bfloat16())
    assert torch.equal(step.params[1], torch.ones_like(step.params[1]))
    assert step.rounding_steps.tolist() == [1, 0]


def test_frozen_norms_are_kept_once_they_were_used(core: Any) -> None:
    step = Step(core, track_norms=False).attach()
    step.plan.step(**step.arguments)
    assert step.flags.tolist() == [STARTED | NORM_KEPT, STARTED]
    step.plan.measure(b"\1")
    assert (step.row_norm_sq.tolist(), step.sum_squares.tolist()) == ([3.0], [6.0])
    step.flags[0] = STARTED
    step.plan.measure(b"\1")
    assert step.row_norm_sq[0] < 3.0


def test_the_caller_may_change_what_is_carried(core: Any) -> None:
    step = Step(core).attach()
    step.row_norm_sq[0], step.stale_steps[0] = 5.0, 7
    step.plan.step(**step.arguments)
    assert step.weights[0][0, 0].item() == pytest.approx(1 - 0.1 * 5.0 * (1 + 0.01), rel=1e-6)
    assert step.stale_steps.tolist() == [7]


@pytest.mark.parametrize("scale", [4.0, torch.tensor(4.0), torch.tensor([4.0])])
def test_gradients_are_unscaled(core: Any, scale: Any) -> None:
    step = Step(core).attach()
    step.plan.step(**{**step.arguments, "grad_scale": scale})
    assert step.weights[0][0, 0].item() == pytest.approx(1 - 0.1 * 3.0 * (1 / 4 + 0.01), rel=1e-6)


def test_threads_are_asked_for_every_time(core: Any) -> None:
    asked: list[int] = []

    def threads() -> int:
        asked.append(1)
        return 1

    step = Step(core, threads=threads).attach()
    step.plan.step(**step.arguments)
    step.plan.step(**step.arguments)
    assert len(asked) == 3


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_same_bits_everywhere(core: Any, set_num_threads: Callable[[int], None], dtype: torch.dtype) -> None:
    options = {"lr": 1e-4, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    case = Case(shapes=[(129, 130), (5,), (33, 31), (64, 33), (10, 64)], dtype=dtype, options=options)
    outcomes = {}
    for name in core.instruction_sets():
        for threads, distance in ((1, 0), (2, 256)):
            core.use_instruction_set(name)
            core.use_prefetch_distance(distance)
            assert core.prefetch_distance() == distance
            set_num_threads(threads)
            params, optimizer = case.run("native")
            tensors = [*params, *(optimizer.state[param]["momentum_buffer"] for param in params)]
            norms = [layer.row_norm_sq for layer in optimizer.layer_report()]
            outcomes[name, threads] = [*map(bits, tensors), norms]
    expected = outcomes["baseline", 1]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)
    for where, outcome in outcomes.items():
        assert outcome == expected, where


def test_all_equal(core: Any) -> None:
    """As a comparison of lists: by identity first, and by length; what the function raises comes out."""
    nan = float("nan")
    assert core.all_equal(str, [1, 2], ["1", "2"])
    assert core.all_equal(lambda item: item, [nan], [nan])
    assert not core.all_equal(str, [1, 2], ["1", "3"])
    assert not core.all_equal(str, [1], ["1", "2"])
    assert not core.all_equal(str, [1], [])
    with pytest.raises(ZeroDivisionError):
        core.all_equal(lambda item: 1 / item, [1, 0], [1.0, 0.0])
    with pytest.raises(TypeError, match="want a function and two lists"):
        core.all_equal(str, (1,), ["1"])
    values: list[int] = [0, 1, 2]
    core.all_equal(lambda item: values.clear(), [0, 1, 2], values)  # and lists that shrink meanwhile


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux only")
@pytest.mark.usefixtures("core")
def test_a_process_has_one_openmp_runtime() -> None:
    """That of torch: with two, each would keep as many threads."""
    code = "import sasgd_fused._C; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    runtimes = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line or "libomp" in line}
    (runtime,) = runtimes
    assert Path(torch.__file__).resolve().parent in Path(runtime).parents
