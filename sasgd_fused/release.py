"""Gradient release: each parameter is updated within backward, as soon as its gradient is there."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, MutableMapping

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary


class GradientRelease:
    """What `ScaleAmendedSGD.release_gradients_in_backward` returns; `remove` ends it.

    Args:
        update: updates one parameter from its gradient.
    """

    def __init__(self, update: Callable[[Tensor], None]) -> None:
        self._update = weakref.WeakMethod(update)
        self._handles: MutableMapping[Tensor, RemovableHandle] = WeakTensorKeyDictionary()
        self.is_on = False

    def attach(self, params: Iterable[Tensor]) -> None:
        """Takes up the parameters that get gradients and are not taken up yet."""
        self.is_on = True
        release = weakref.WeakMethod(self._release)

        def hook(param: Tensor) -> None:  # parameters hold it, so it must hold nothing that holds them
            if run := release():
                run(param)

        for param in params:
            if param.requires_grad and param not in self._handles:
                self._handles[param] = param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Leaves gradients as they are from now on, for `step`."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self.is_on = False

    def _release(self, param: Tensor) -> None:
        if update := self._update():
            update(param)
            param.grad = None
