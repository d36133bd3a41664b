"""Gradient release: each parameter is updated within backward, as soon as its gradient is there."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils.hooks import RemovableHandle

_RUNS_BACKWARD = torch.autograd.graph._engine_run_backward.__code__
_RUNS_NODE = BackwardCFunction.apply.__code__


class GradientRelease:
    """What `ScaleAmendedSGD.release_gradients_in_backward` returns; `remove` ends it.

    Args:
        update: updates one parameter from its gradient, the first in a backward or another; returns whether it did.
    """

    def __init__(self, update: Callable[[Tensor, bool], bool]) -> None:
        self._update = weakref.WeakMethod(update)
        # By id, since torch swaps no parameter to which there are weak references (model.to of wrapped tensors).
        self._handles: dict[int, tuple[Tensor, RemovableHandle]] = {}
        self._updated: set[int] = set()  # in the backward that is under way
        self._waiting: list[Tensor] = []
        self._task = -1  # torch's number for that; one that failed has not emptied the set
        self.is_on = False

    def attach(self, params: Iterable[Tensor]) -> None:
        """Hooks the parameters that get gradients and have no hook yet, and unhooks those that left."""
        self.is_on = True
        release = weakref.WeakMethod(self._release)

        def hook(param: Tensor) -> None:  # parameters hold it, so it must hold nothing that holds them
            if run := release():
                run(param)

        before, self._handles = self._handles, {}
        for param in params:
            held = before.pop(id(param), None)
            if held is None and param.requires_grad:
                held = param, param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            elif held and param.grad is not None:  # torch forgets hooks of a parameter that was swapped
                param._post_accumulate_grad_hooks = param._post_accumulate_grad_hooks  # setting enters them anew
            if held:
                self._handles[id(param)] = held
        for _, handle in before.values():
            handle.remove()

    def remove(self) -> None:
        """Removes the hooks: from now on gradients are left for `step`."""
        for _, handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._waiting.clear()
        self.is_on = False

    def _release(self, param: Tensor) -> None:
        update = self._update()
        if not update:
            return
        if _is_within_a_node():
            # Reentrant checkpointing runs a backward of its own for each segment. Others may use the same parameter,
            # so its gradient may be a part.
            if id(param) in self._updated:
                raise RuntimeError(
                    "release_gradients_in_backward: got a second part of a gradient within one backward, after the "
                    "update by the first; want checkpoint(..., use_reentrant=False) for layers that are used more "
                    "than once"
                )
            self._waiting.append(param)
            return  # `step` has the sum
        is_first = self._task != torch._C._current_graph_task_id()
        if is_first:
            self._task = torch._C._current_graph_task_id()
            self._updated.clear()
            torch.autograd.Variable._execution_engine.queue_callback(self._updated.clear)
        self._updated.add(id(param))
        version = param._version
        try:
            is_taken = update(param, is_first)
        except BaseException:
            if param._version != version:  # an interrupt after the update: a gradient is taken once
                param.grad = None
            raise
        if is_taken:
            param.grad = None

    def free_waiting(self) -> None:
        """Frees the gradients that waited for `step`, which has taken them."""
        for param in self._waiting:
            param.grad = None
        self._waiting.clear()


def _is_within_a_node() -> bool:
    """Returns whether this backward was started by a node of another one."""
    frame, has_started = sys._getframe(2), False
    while frame:
        if frame.f_code is _RUNS_BACKWARD:
            has_started = True
        elif has_started and frame.f_code is _RUNS_NODE:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
