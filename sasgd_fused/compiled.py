"""A step as one operator in a graph that `torch.compile` makes.

Addresses, version counters and what a device tells late are nothing that a graph could hold. So the operator has a
number for the optimizer, and takes the step as it would be taken outside of a graph: with the hyperparameters of that
moment, so that a schedule compiles nothing anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from weakref import WeakMethod, WeakValueDictionary

import torch
from torch import Tensor


class StepInGraph:
    """Takes an optimizer's steps from within graphs.

    Args:
        update: takes a step with the parameters' gradients.
        params: all parameters. They are traced instead of the optimizer's groups: a graph that has looked there holds
            for the present hyperparameters alone.
    """

    def __init__(self, update: Callable[[], None], params: list[Tensor]) -> None:
        self._update = WeakMethod(update)
        self._params = params
        self._number = next(_numbers)
        _steps[self._number] = self

    def __call__(self) -> None:
        """Is traced."""
        places = [place for place, param in enumerate(self._params) if param.grad is not None]
        params = [self._params[place] for place in places]
        torch.ops.sasgd_fused.step(params, [param.grad for param in params], places, self._number)

    def run(self, params: list[Tensor], grads: list[Tensor], places: list[int]) -> None:
        """Is what the operator does; see `_step`."""
        update = self._update()
        assert update, "the optimizer is alive: its step is being taken"
        before = [param.grad for param in self._params]
        try:
            for param in self._params:
                param.grad = None
            for place, grad in zip(places, grads, strict=True):
                self._params[place].grad = grad
            update()
        finally:
            for param, kept in zip(self._params, before, strict=True):
                param.grad = kept
        for given, place in zip(params, places, strict=True):
            param = self._params[place].detach()
            if given.data_ptr() != param.data_ptr():
                updated = param.clone()
                param.copy_(given)  # the graph may still read it, and will copy the other one there
                given.copy_(updated)


_steps: WeakValueDictionary[int, StepInGraph] = WeakValueDictionary()
_numbers = itertools.count()


@torch.library.custom_op(
    "sasgd_fused::step",
    mutates_args=("params",),
    schema="(Tensor(a!)[] params, Tensor[] grads, int[] places, int number) -> ()",
)
def _step(params: list[Tensor], grads: list[Tensor], places: list[int], number: int) -> None:
    """Takes a step.

    Args:
        params: those that have a gradient; or copies, to be updated instead, which the graph copies back later.
        grads: their gradients, which may not be in the parameters yet.
        places: where they stand among all parameters.
        number: of the `StepInGraph`.
    """
    _steps[number].run(params, grads, places)
