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
    "layers": [(0, True, 2.0, 3.0, 1.0)],
    "eps": 1e-3,
    "shape_decay": False,
    "track_norms": True,
    "threads": torch.get_num_threads,
}
# The layer is the master of a bfloat16 parameter.
PRECISION = [(1, True, True, 2018), (0, False, False, 0)]
STARTED, NORM_KEPT = 1, 2


class Step:
    """A plan of a layer in float32 and a vector in float16, its memory, and all that a step of it wants."""

    def __init__(self, core: Any, precision: Sequence[tuple[int, bool, bool, int]] = (), **options: Any) -> None:
        shapes = {torch.float32: (2, 3), torch.float16: (3,)}
        self.weights = [torch.ones(shape, dtype=dtype) for dtype, shape in shapes.items()]
        self.grads = [torch.ones_like(weight) for weight in self.weights]
        self.momentum_buffers = [torch.zeros_like(weight) for weight in self.weights]
        self.params = [torch.ones_like(weight, dtype=torch.bfloat16) for weight in self.weights]
        self.row_norm_sq, self.sum_squares = (torch.zeros(1, dtype=torch.float64) for _ in range(2))
        self.stale_steps, self.rounding_steps = (torch.zeros(count, dtype=torch.int64) for count in (1, 2))
        self.flags = torch.zeros(2, dtype=torch.uint8)
        self.plan = core.CpuPlan(**{**PLAN, **options}, precision=precision)
        self.memory = {
            name: getattr(self, name).data_ptr()
            for name in ("row_norm_sq", "sum_squares", "stale_steps", "flags", "rounding_steps")
        }
        self.places = {
            "weights": addresses(self.weights),
            "momentum_buffers": addresses(self.momentum_buffers),
            "params": null(1)(addresses(self.params)) if precision else array("Q", [0, 0]),
        }
        self.arguments: dict[str, Any] = {
            "grads": addresses(self.grads),
            "grad_dtypes": array("B", [0, 2]),
            "values": array("d", [0.1, 0.9, 0.0, 0.01, 0.0, 0.0]),
            "lrs": {},
            "grad_scale": None,
            "found_inf": None,
        }

    def attach(self) -> Step:
        """As a caller does before the first step."""
        self.plan.attach(**self.memory)
        self.plan.place(**self.places)
        self.plan.measure(b"\1")
        return self

    def picture(self) -> list[Any]:
        tensors = [*self.weights, *self.grads, *self.momentum_buffers, *self.params, self.row_norm_sq]
        tensors += [self.sum_squares, self.stale_steps, self.flags, self.rounding_steps]
        return [*map(bits, tensors), self.plan.steps]


def addresses(tensors: list[Tensor]) -> array[int]:
    return array("Q", [tensor.data_ptr() for tensor in tensors])


def shorter(values: array[Any]) -> array[Any]:
    return values[:-1]


def longer(values: array[Any]) -> array[Any]:
    return values + values[:1]


def null(index: int) -> Callable[[array[int]], array[int]]:
    return lambda values: array("Q", [0 if i == index else value for i, value in enumerate(values)])


def test_step_of_the_module(core: Any) -> None:
    step = Step(core).attach()
    assert step.row_norm_sq.tolist() == [3.0]
    assert step.plan.step(**step.arguments) == 0
    assert step.plan.steps == 1
    assert step.flags.tolist() == [STARTED, STARTED]
    assert all(bool((weight < 1).all()) for weight in step.weights)
    assert step.sum_squares[0] == 2 * step.row_norm_sq[0] != 6.0
    assert (step.plan.is_capturing(), step.plan.stream(), step.plan.memory()) == (False, None, [])


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
    assert step.weights[0][0, 0] == pytest.approx(1 - 0.1 * 5.0 * (1 + 0.01), rel=1e-6)
    assert step.stale_steps.tolist() == [7]


@pytest.mark.parametrize("scale", [4.0, torch.tensor(4.0), torch.tensor([4.0])])
def test_gradients_are_unscaled(core: Any, scale: Any) -> None:
    step = Step(core).attach()
    step.plan.step(**{**step.arguments, "grad_scale": scale})
    assert step.weights[0][0, 0] == pytest.approx(1 - 0.1 * 3.0 * (1 / 4 + 0.01), rel=1e-6)


def test_threads_are_asked_for_every_time(core: Any) -> None:
    asked: list[int] = []

    def threads() -> int:
        asked.append(1)
        return 1

    step = Step(core, threads=threads).attach()
    step.plan.step(**step.arguments)
    step.plan.step(**step.arguments)
    assert len(asked) == 3


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
        ("layers", [(2, True, 2.0, 3.0, 1.0)], "^layers: got tensor 2, want less than 2"),
        ("layers", [(-1, True, 2.0, 3.0, 1.0)], "^layers: got tensor -1, want less than 2"),
        ("layers", [(0, True, 2.0, 3.0, 0.0), (1, True, 1.0, 3.0, 2.0)], "^layers: got a .* want all or none"),
        ("layers", [(0, True, 2.0, 3.0, 2.0), (1, True, 1.0, 3.0, 0.0)], "^layers: got a .* want all or none"),
        ("layers", [(0, True, 2.0, 3.0, 1.0)] * 2, "^layers: layer 0 and its tensor do not refer to each other"),
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
        core.CpuPlan(**{**PLAN, name: value})


def test_empty_layers_and_unknown_instruction_sets(core: Any) -> None:
    with pytest.raises(ValueError, match=r"^layers: layer 0 and its tensor do not refer"):
        core.CpuPlan(**{**PLAN, "tensors": [(0, 0, 0)]})
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
