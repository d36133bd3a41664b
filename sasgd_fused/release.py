"""Gradient release: each parameter is updated within backward, as soon as its gradient is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from weakref import WeakMethod

from torch import Tensor
from torch.utils.hooks import RemovableHandle


class GradientRelease:
    """What `ScaleAmendedSGD.release_gradients_in_backward` returns; `remove` ends it.

    Args:
        update: updates one parameter from its gradient.
    """

    def __init__(self, update: Callable[[Tensor], None]) -> None:
        self._update = WeakMethod(update)  # the parameters hold the hooks: they shall not keep the optimizer
        self._handles: dict[Tensor, RemovableHandle] = {}

    def attach(self, params: Iterable[Tensor]) -> None:
        """Takes up the parameters that get gradients and are not taken up yet."""
        for param in params:
            if param.requires_grad and param not in self._handles:
                hook = param.register_post_accumulate_grad_hook(self._release)  # type: ignore[no-untyped-call]
                self._handles[param] = hook

    def remove(self) -> None:
        """Leaves gradients as they are from now on, for `step`."""
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}

    @property
    def is_attached(self) -> bool:
        """Whether gradients are released."""
        return bool(self._handles)

    def _release(self, param: Tensor) -> None:
        if update := self._update():
            update(param)
            param.grad = None
