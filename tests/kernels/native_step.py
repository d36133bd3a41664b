"""A small plan of the compiled module, its memory, and all that a step of it wants."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.device_state import CarriedState
from tests.unchanged import bits

PLAN: dict[str, Any] = {
    "tensors": [(6, 0, 0), (3, 0, 2)],
    "layers": [(0, True, 2.0, 3.0, 1.0, False)],
    "eps": 1e-3,
    "shape_decay": False,
    "track_norms": True,
    "relative": False,
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
        self.gradient_norm_sq, self.gradient_sums = (torch.zeros(2, dtype=torch.float64) for _ in range(2))
        self.plan = core.CpuPlan(**{**PLAN, **options}, precision=precision)
        self.memory = {name: getattr(self, name).data_ptr() for name in CarriedState._fields}
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
        tensors = [*self.weights, *self.grads, *self.momentum_buffers, *self.params]
        tensors += [getattr(self, name) for name in CarriedState._fields]
        return [*map(bits, tensors), self.plan.steps]


def addresses(tensors: list[Tensor]) -> array[int]:
    return array("Q", [tensor.data_ptr() for tensor in tensors])


def null(index: int) -> Callable[[array[int]], array[int]]:
    return lambda values: array("Q", [0 if i == index else value for i, value in enumerate(values)])
