"""The compiled module refuses what it is told wrongly, before it touches anything, and computes the same everywhere."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import LOW_PRECISION, Case, backends, cpu_only
from tests.unchanged import bits

pytestmark = cpu_only("its kernel, instruction sets and threads")


@pytest.fixture(params=backends(["native"]))
def core() -> Iterator[Any]:
    """The Python module, whose instruction set is put back afterwards."""
    from sasgd_fused import _C

    yield _C
    _C.use_instruction_set(_C.instruction_sets()[0])


PLAN: dict[str, Any] = {
    "tensors": [(6, 0, 0), (3, 0, 2)],
    "blocks": [(0, True, 2.0, 3.0, 1.0)],
    "eps": 1e-3,
    "shape_decay": False,
    "track_norms": True,
}


# The block is the master of a bfloat16 parameter.
STORAGE = [(1, True, True, 2018), (0, False, False, 0)]


class Step:
    """A plan of a block in float32 and a vector in float16, and all that a step of it wants."""

    def __init__(self, core: Any, storage: Sequence[tuple[int, bool, bool, int]] = ()) -> None:
        shapes = {torch.float32: (2, 3), torch.float16: (3,)}
        self.weights = [torch.ones(shape, dtype=dtype) for dtype, shape in shapes.items()]
        self.grads = [torch.ones_like(weight) for weight in self.weights]
        self.momentum_buffers = [torch.zeros_like(weight) for weight in self.weights]
        self.copies = [torch.ones_like(weight, dtype=torch.bfloat16) for weight in self.weights]
        self.plan = core.CpuPlan(**PLAN, storage=storage)
        self.arguments: dict[str, Any] = {
            "weights": addresses(self.weights),
            "grads": addresses(self.grads),
            "momentum_buffers": addresses(self.momentum_buffers),
            "copies": null(1)(addresses(self.copies)) if storage else array("Q", [0, 0]),
            "grad_dtypes": array("B", [0, 2]),
            "first": array("B", [1, 1]),
            "rounding_steps": array("q", [0, 0]),
            "values": array("d", [0.1, 0.9, 0.0, 0.01, 0.0, 0.0]),
            "loss_scale": 1.0,
            "threads": 1,
        }
        self.measuring = {"weights": self.arguments["weights"], "chosen_blocks": array("B", [1]), "threads": 1}
        self.plan.measure(**self.measuring)

    def picture(self) -> list[Any]:
        tensors = [*self.weights, *self.grads, *self.momentum_buffers, *self.copies]
        return [*map(bits, tensors), self.plan.row_norm_sq, self.plan.stale_steps, self.plan.steps]


def addresses(tensors: list[Tensor]) -> array[int]:
    return array("Q", [tensor.data_ptr() for tensor in tensors])


def shorter(values: array[Any]) -> array[Any]:
    return values[:-1]


def longer(values: array[Any]) -> array[Any]:
    return values + values[:1]


def null(index: int) -> Callable[[array[int]], array[int]]:
    return lambda values: array("Q", [0 if i == index else value for i, value in enumerate(values)])


def test_step_of_the_module(core: Any) -> None:
    step = Step(core)
    assert step.plan.step(**step.arguments) == 0
    assert step.plan.steps == 1
    assert all(bool((weight < 1).all()) for weight in step.weights)


def test_step_of_a_master(core: Any) -> None:
    """Its parameter, the copy, is written; a gradient of the parameter's dtype is taken too."""
    step = Step(core, STORAGE)
    grad = step.grads[0].bfloat16()
    step.arguments["grads"][0], step.arguments["grad_dtypes"][0] = grad.data_ptr(), 1
    step.plan.step(**step.arguments)
    assert bool((step.weights[0] < 1).all())
    assert torch.equal(step.copies[0], step.weights[0].bfloat16())
    assert torch.equal(step.copies[1], torch.ones_like(step.copies[1]))


@pytest.mark.parametrize(
    ("name", "spoil", "complaint"),
    [
        *[(name, shorter, f"^{name}: got 8 bytes, want 2 items of 8") for name in ("weights", "grads")],
        *[(name, longer, f"^{name}: got 24 bytes, want 2 items of 8") for name in ("weights", "grads")],
        *[(name, shorter, f"^{name}: got 8 bytes, want 2 items of 8") for name in ("momentum_buffers", "copies")],
        ("rounding_steps", longer, "^rounding_steps: got 24 bytes, want 2 items of 8"),
        ("grad_dtypes", longer, "^grad_dtypes: got 3 bytes, want 2 items of 1"),
        ("grad_dtypes", lambda _: array("B", [0, 3]), "^grad_dtypes: got dtype code 3, want 0, 1 or 2"),
        ("grad_dtypes", lambda _: array("B", [2, 2]), "^grad_dtypes: tensor 0 .*, want its own or float32"),
        ("grad_dtypes", lambda _: array("B", [0, 1]), "^grad_dtypes: tensor 1 .*, want its own or float32"),
        ("first", shorter, "^first: got 1 bytes, want 2 items of 1"),
        ("values", shorter, "^values: got 40 bytes, want at least 6 items of 8"),
        ("weights", null(1), "^weights.*: got a null address for tensor 1"),
        ("momentum_buffers", null(0), "momentum_buffers: got a null address for tensor 0"),
        ("copies", lambda _: array("Q", [0, 8]), "^copies: tensor 1 has an address and no copy"),
        ("threads", lambda _: 0, "^threads: got 0, want 1 or more"),
        ("threads", lambda _: -1, "^threads: got -1, want 1 or more"),
    ],
)
def test_step_refuses(core: Any, name: str, spoil: Callable[[Any], Any], complaint: str) -> None:
    assert_refused(Step(core), name, spoil, complaint)


@pytest.mark.parametrize(
    ("name", "spoil", "complaint"),
    [
        ("copies", null(0), "^copies: tensor 0 has .* a copy and no address"),
        ("copies", lambda values: array("Q", [values[0]] * 2), "^copies: tensor 1 has an address and no copy"),
        ("grad_dtypes", lambda _: array("B", [2, 2]), "^grad_dtypes: tensor 0 .*, want its own or float32"),
    ],
)
def test_step_of_a_master_refuses(core: Any, name: str, spoil: Callable[[Any], Any], complaint: str) -> None:
    assert_refused(Step(core, STORAGE), name, spoil, complaint)


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
    ("name", "spoil", "complaint"),
    [
        ("weights", shorter, "^weights: got 8 bytes, want 2 items of 8"),
        ("weights", null(0), "^weights: got a null address for block 0"),
        ("chosen_blocks", longer, "^chosen_blocks: got 2 bytes, want 1 items of 1"),
        ("threads", lambda _: 0, "^threads: got 0, want 1 or more"),
    ],
)
def test_measure_refuses(core: Any, name: str, spoil: Callable[[Any], Any], complaint: str) -> None:
    step = Step(core)
    step.plan.set_row_norm_sq(0, 5.0)
    with pytest.raises(ValueError, match=complaint):
        step.plan.measure(**{**step.measuring, name: spoil(step.measuring[name])})
    assert step.plan.row_norm_sq == [5.0]


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("tensors", [(-1, 0, 0)], "^tensors: got a size of -1, want 0 or more"),
        ("tensors", [(6, -1, 0)], "^tensors: got group -1, want a small number"),
        ("tensors", [(6, 2**31 - 1, 0)], "^tensors: got group 2147483647, want a small number"),
        ("tensors", [(6, 0, 3)], "^tensors: got dtype code 3, want 0, 1 or 2"),
        ("tensors", [(6, 0, -1)], "^tensors: got dtype code -1, want 0, 1 or 2"),
        ("blocks", [(2, True, 2.0, 3.0, 1.0)], "^blocks: got tensor 2, want less than 2"),
        ("blocks", [(-1, True, 2.0, 3.0, 1.0)], "^blocks: got tensor -1, want less than 2"),
        ("blocks", [(0, True, 2.0, 3.0, 0.0), (1, True, 1.0, 3.0, 2.0)], "^blocks: got a .* want all or none"),
        ("blocks", [(0, True, 2.0, 3.0, 2.0), (1, True, 1.0, 3.0, 0.0)], "^blocks: got a .* want all or none"),
        ("blocks", [(0, True, 2.0, 3.0, 1.0)] * 2, "^blocks: block 0 and its tensor do not refer to each other"),
        ("storage", STORAGE[:1], "^storage: got 1 entries, want none or 2"),
        ("storage", [*STORAGE, STORAGE[1]], "^storage: got 3 entries, want none or 2"),
        ("storage", [STORAGE[0], (1, False, False, 0)], "^storage: got a copy or .* of 16-bit weights, want float32"),
        ("storage", [STORAGE[0], (0, True, False, 0)], "^storage: .* a small momentum buffer of 16-bit weights"),
        ("storage", [STORAGE[0], (3, False, False, 0)], "^storage: got dtype code 3, want 0, 1 or 2"),
        ("storage", [STORAGE[0], (0, False, True, 0)], "^storage: got stochastic rounding of a .* nothing in bfloat16"),
        ("storage", [(1, False, True, 0), STORAGE[1]], "^storage: got stochastic rounding of a .* nothing in bfloat16"),
    ],
)
def test_plan_refuses(core: Any, name: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        core.CpuPlan(**{**PLAN, name: value})


def test_unknown_block_and_instruction_set(core: Any) -> None:
    plan = core.CpuPlan(**PLAN)
    with pytest.raises(ValueError, match=r"^block: got 1, want less than 1"):
        plan.set_row_norm_sq(1, 1.0)
    assert plan.row_norm_sq == [0.0]
    with pytest.raises(ValueError, match=r"^name: got 'sse9', want one of"):
        core.use_instruction_set("sse9")


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_same_bits_everywhere(core: Any, set_num_threads: Callable[[int], None], dtype: torch.dtype) -> None:
    options = {"lr": 1e-4, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    case = Case(shapes=[(129, 130), (5,), (33, 31), (64, 33), (10, 64)], dtype=dtype, options=options)
    outcomes = {}
    for name in core.instruction_sets():
        for threads in (1, 2):
            core.use_instruction_set(name)
            set_num_threads(threads)
            params, optimizer = case.run("native")
            tensors = [*params, *(optimizer.state[param]["momentum_buffer"] for param in params)]
            norms = [layer.row_norm_sq for layer in optimizer.layer_report()]
            outcomes[name, threads] = [*map(bits, tensors), norms]
    expected = outcomes["baseline", 1]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)
    for where, outcome in outcomes.items():
        assert outcome == expected, where
