"""A step as one operator in a graph that `torch.compile` makes.

Addresses, version counters and what a device tells late are nothing that a graph could hold. So the operator has a
number for the optimizer, and takes the step as it would be taken outside of a graph: with the hyperparameters of that
moment, so that a schedule compiles nothing anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from weakref import WeakMethod, WeakValueDictionary

import torch
from torch import Tensor


class StepInGraph:
    """Takes an optimizer's steps from within graphs.

    Args:
        update: takes a step with the parameters' gradients.

    Attributes:
        params: all parameters. They are traced instead of the optimizer's groups: a graph that has looked there holds
            for the present hyperparameters alone.
    """

    def __init__(self, update: Callable[[], None]) -> None:
        self.params: list[Tensor] = []
        self._update = WeakMethod(update)
        self._number = next(_numbers)
        _steps[self._number] = self

    def __call__(self) -> None:
        """Is traced."""
        places = [place for place, param in enumerate(self.params) if param.grad is not None]
        params = [self.params[place] for place in places]
        torch.ops.sasgd_fused.step(params, [param.grad for param in params], places, self._number)

    def run(self, params: list[Tensor], grads: list[Tensor], places: list[int]) -> None:
        """Is what the operator does; see `_step`."""
        update = self._update()
        assert update, "the optimizer is alive: its step is being taken"
        traced = self.params  # the update may find the groups changed, and have other params then
        own = [traced[place] for place in places]
        with torch.no_grad():
            # A graph may keep what it has written so far apart, and have its present weights updated in a copy.
            apart = [(p, given, p.clone()) for p, given in zip(own, params, strict=True) if _differ(p, given)]
            for param, given, _ in apart:
                param.copy_(given)
        gradients = [param.grad for param in traced]
        try:
            for param in traced:
                param.grad = None
            for param, grad in zip(own, grads, strict=True):
                param.grad = grad
            update()
        finally:
            for param, kept in zip(traced, gradients, strict=True):
                param.grad = kept
            with torch.no_grad():
                for param, given, before in apart:
                    given.copy_(param)
                    param.copy_(before)


def _differ(param: Tensor, given: Tensor) -> bool:
    return param.data_ptr() != given.data_ptr()


_steps: WeakValueDictionary[int, StepInGraph] = WeakValueDictionary()
_numbers = itertools.count()
# A CUDA graph's replay would run nothing of Python. Older versions of torch have no word for it.
_unsafe: dict[str, Any] = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}


@torch.library.custom_op(
    "sasgd_fused::step",
    mutates_args=("params",),
    schema="(Tensor(a!)[] params, Tensor[] grads, int[] places, int number) -> ()",
    **_unsafe,
)
def _step(params: list[Tensor], grads: list[Tensor], places: list[int], number: int) -> None:
    """Takes a step.

    Torch counts a write to each parameter besides the step's own, so the next step takes the norms by a pass, and
    compares masters with their parameters.

    Args:
        params: those that have a gradient; or copies, to be updated instead.
        grads: their gradients, which may not be in the parameters yet.
        places: where they stand among all parameters.
        number: of the `StepInGraph`.
    """
    _steps[number].run(params, grads, places)
