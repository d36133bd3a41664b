"""The compiled module refuses what it is told wrongly, before it touches anything."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.helpers import cpu_only
from tests.kernels.native_step import PLAN, PRECISION, STARTED, Step, null

pytestmark = cpu_only("its kernel")


def shorter(values: array[Any]) -> array[Any]:
    return values[:-1]


def longer(values: array[Any]) -> array[Any]:
    return values + values[:1]


@pytest.mark.parametrize(
    ("name", "spoil", "complaint"),
    [
        ("grads", shorter, "^grads: got 8 bytes, want 2 items of 8"),
        ("grads", longer, "^grads: got 24 bytes, want 2 items of 8"),
        ("grad_dtypes", longer, "^grad_dtypes: got 3 bytes, want 2 items of 1"),
        ("grad_dtypes", lambda _: array("B", [0, 3]), "^grad_dtypes: got dtype code 3, want 0, 1 or 2"),
        ("grad_dtypes", lambda _: array("B", [2, 2]), "^grad_dtypes: tensor 0 .*, want its own or float32"),
        ("grad_dtypes", lambda _: array("B", [0, 1]), "^grad_dtypes: tensor 1 .*, want its own or float32"),
        ("values", shorter, "^values: got 40 bytes, want at least 6 items of 8"),
        ("lrs", lambda _: {0: torch.ones(())}, "^lrs: got learning rates in tensors, want them among the values"),
        ("found_inf", lambda _: torch.zeros(()), "^found_inf: got a flag, want None"),
    ],
)
def test_step_refuses(core: Any, name: str, spoil: Callable[[Any], Any], complaint: str) -> None:
    assert_refused(Step(core).attach(), name, spoil, complaint)


def test_step_of_a_master_refuses(core: Any) -> None:
    """A gradient that has neither the parameter's dtype nor float32."""
    complaint = "^grad_dtypes: tensor 0 .*, want its own or float32"
    assert_refused(Step(core, PRECISION).attach(), "grad_dtypes", lambda _: array("B", [2, 2]), complaint)


def assert_refused(step: Step, name: str, spoil: Callable[[Any], Any], complaint: str) -> None:
    """Spoils an argument of a step, which then raises and has neither done anything nor kept any argument."""
    before = step.picture()
    step.arguments[name] = spoil(step.arguments[name])
    with pytest.raises(ValueError, match=complaint):
        step.plan.step(**step.arguments)
    assert step.picture() == before
    for argument in step.arguments.values():
        if isinstance(argument, array):
            argument.pop()  # a BufferError if the module still held it


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("weights", "^weights: got a null address for tensor 0"),
        ("momentum_buffers", "^momentum_buffers: got a null address for tensor 0"),
    ],
)
def test_step_refuses_what_was_not_placed(core: Any, name: str, complaint: str) -> None:
    step = Step(core).attach()
    step.plan.place(**{**step.places, name: null(0)(step.places[name])})
    assert_refused(step, "grads", lambda grads: grads, complaint)
    step = Step(core).attach()
    step.plan.place(**{**step.places, name: null(0)(step.places[name])})
    step.plan.step(**{**step.arguments, "grads": null(0)(step.arguments["grads"])})
    assert step.flags.tolist() == [0, STARTED]


@pytest.mark.parametrize("threads", [lambda: 0, lambda: -1])
def test_measure_and_step_refuse_numbers_of_threads(core: Any, threads: Callable[[], int]) -> None:
    step = Step(core, threads=threads)
    step.plan.attach(**step.memory)
    step.plan.place(**step.places)
    with pytest.raises(ValueError, match=r"^threads: got (0|-1), want 1 or more"):
        step.plan.measure(b"\1")
    assert_refused(step, "grads", lambda grads: grads, "^threads: got (0|-1), want 1 or more")


@pytest.mark.parametrize(
    ("name", "precision", "spoil", "complaint"),
    [
        *[(n, [], shorter, f"^{n}: got 8 bytes, want 2 items of 8") for n in ("weights", "momentum_buffers", "params")],
        *[(n, [], longer, f"^{n}: got 24 bytes, want 2 items of 8") for n in ("weights", "momentum_buffers", "params")],
        ("params", [], lambda _: array("Q", [0, 8]), "^params: tensor 1 has an address and is no master"),
        ("params", PRECISION, lambda _: array("Q", [8, 8]), "^params: tensor 1 has an address and is no master"),
        ("params", PRECISION, null(0), "^params: tensor 0 .* is a master and has no address"),
    ],
)
def test_place_refuses(core: Any, name: str, precision: list[Any], spoil: Callable[[Any], Any], complaint: str) -> None:
    step = Step(core, precision).attach()
    with pytest.raises(ValueError, match=complaint):
        step.plan.place(**{**step.places, name: spoil(step.places[name])})
    assert step.plan.step(**step.arguments) == 0  # with the addresses of before


def test_measure_refuses(core: Any) -> None:
    step = Step(core).attach()
    step.row_norm_sq[0] = 5.0
    with pytest.raises(ValueError, match=r"^chosen: got 2 bytes, want 1 items of 1"):
        step.plan.measure(b"\1\1")
    step.plan.place(**{**step.places, "weights": null(0)(step.places["weights"])})
    with pytest.raises(ValueError, match=r"^weights: got a null address for tensor 0"):
        step.plan.measure(b"\1")
    step.plan.measure(b"\0")
    assert step.row_norm_sq.tolist() == [5.0]


def test_nothing_runs_without_memory(core: Any) -> None:
    step = Step(core)
    step.plan.place(**step.places)
    with pytest.raises(ValueError, match=r"^attach: has not been called"):
        step.plan.measure(b"\1")
    with pytest.raises(ValueError, match=r"^attach: has not been called"):
        step.plan.step(**step.arguments)
    for name in step.memory:
        with pytest.raises(ValueError, match=f"^{name}: got a null address"):
            step.plan.attach(**{**step.memory, name: 0})


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("tensors", [(-1, 0, 0)], "^tensors: got a size of -1, want 0 or more"),
        ("tensors", [(6, -1, 0)], "^tensors: got group -1, want a small number"),
        ("tensors", [(6, 2**31 - 1, 0)], "^tensors: got group 2147483647, want a small number"),
        ("tensors", [(6, 0, 3)], "^tensors: got dtype code 3, want 0, 1 or 2"),
        ("tensors", [(6, 0, -1)], "^tensors: got dtype code -1, want 0, 1 or 2"),
        ("layers", [(2, True, 2.0, 3.0, 1.0, False)], "^layers: got tensor 2, want less than 2"),
        ("layers", [(-1, True, 2.0, 3.0, 1.0, False)], "^layers: got tensor -1, want less than 2"),
        (
            "layers",
            [(0, True, 2.0, 3.0, 0.0, False), (1, True, 1.0, 3.0, 2.0, False)],
            "^layers: got a .* want all or none",
        ),
        (
            "layers",
            [(0, True, 2.0, 3.0, 2.0, False), (1, True, 1.0, 3.0, 0.0, False)],
            "^layers: got a .* want all or none",
        ),
        ("layers", [(0, True, 2.0, 3.0, 1.0, False)] * 2, "^layers: layer 0 and its tensor do not refer to each other"),
        ("relative", True, "^relative: got it without track_norms, want norms that follow the weights"),
        ("precision", PRECISION[:1], "^precision: got 1 entries, want none or 2"),
        ("precision", [*PRECISION, PRECISION[1]], "^precision: got 3 entries, want none or 2"),
        ("precision", [PRECISION[0], (1, False, False, 0)], "^precision: got masters or .* of 16-bit weights"),
        ("precision", [PRECISION[0], (0, True, False, 0)], "^precision: .* small momentum of 16-bit weights"),
        ("precision", [PRECISION[0], (3, False, False, 0)], "^precision: got dtype code 3, want 0, 1 or 2"),
        ("precision", [PRECISION[0], (0, False, True, 0)], "^precision: got stochastic .* nothing in bfloat16"),
        ("precision", [(1, False, True, 0), PRECISION[1]], "^precision: got stochastic .* nothing in bfloat16"),
    ],
)
def test_plan_refuses(core: Any, name: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        core.CpuPlan(**{**PLAN, "track_norms": name != "relative", name: value})


@pytest.mark.parametrize("elements", [-1, 16385])
def test_prefetch_distances_that_are_refused(core: Any, elements: int) -> None:
    before = core.prefetch_distance()
    with pytest.raises(ValueError, match=rf"^elements: got {elements}, want 0 to 16384"):
        core.use_prefetch_distance(elements)
    assert core.prefetch_distance() == before


def test_empty_layers_and_unknown_instruction_sets(core: Any) -> None:
    with pytest.raises(ValueError, match=r"^layers: layer 0 and its tensor do not refer"):
        core.CpuPlan(**{**PLAN, "tensors": [(0, 0, 0)]})
    with pytest.raises(ValueError, match=r"^name: got 'sse9', want one of"):
        core.use_instruction_set("sse9")
