"""What a step looks at to notice what others have changed since the one before.

Anybody may put another tensor in the place of one that a kernel knows by its address. So a step reads a few attributes
of every tensor and compares them, in lists, with what was noted. Mapping a function over a list costs 30-60 ns for a
tensor, a fifth less than a comprehension (docs/kernels.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sasgd_fused.backends import extension
from sasgd_fused.memory import address_of, is_plain
from sasgd_fused.plan import State, StepPlan

_grad_of = attrgetter("grad")
_dtype_of = attrgetter("dtype")
_version_of = attrgetter("_version")
_strides_of = Tensor.stride


def _all_equal(function: Callable[[Any], object], items: list[Any], values: list[Any]) -> bool:
    """Returns whether a function has these values of these items, in their order."""
    return list(map(function, items)) == values


if extension.core:
    _all_equal = extension.core.all_equal  # a seventh faster


class Changes(NamedTuple):
    """What is not as it was noted.

    Attributes:
        moved: parameters lie in other memory, or in another layout.
        entries: the state has other entries, or tensors in it lie in other memory.
        written: parameters were written, or lie over memory that others write too.
    """

    moved: bool
    entries: bool
    written: bool


class Watch:
    """Looks at the parameters of a plan and at their state.

    Args:
        plan: whose parameters.
        state: the optimizer's.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        self._params = plan.params
        self._address_of = Tensor.data_ptr if all(map(is_plain, plan.params)) else address_of
        self._addresses: list[int] = []
        self._strides: list[tuple[int, ...]] = []
        self._entries = _Entries(plan.params, state, self._address_of)
        self._versions: list[int] = []  # when they were noted; `_steps` steps have raised all by one since
        self._steps = 0
        self._version_sum = -1
        # Views of one flat tensor share its counter, which a step raises by more than one.
        storages = [param.untyped_storage().data_ptr() for param in plan.params if is_plain(param) and param.numel()]
        self._own_counters = len(set(storages)) == len(storages)
        self._is_overlaid = bool(plan.overlaid)
        # Nobody asks for writes where norms stay as they are and there are no masters to compare.
        self._ignores_writes = plan.options.freezes_norms and not plan.has_masters

    def look(self, only: int | None = None) -> Changes:
        """Returns what has changed, of all parameters or of the one with this index."""
        if only is not None:
            return self._look_at(only)
        params = self._params
        # Strides tell shapes of as many elements apart, and gradients have as many as their parameters. Version
        # counters only grow, so their sum changes whenever one of them does.
        return Changes(
            not _all_equal(self._address_of, params, self._addresses)
            or not _all_equal(_strides_of, params, self._strides),
            self._entries.changed(),
            self._is_overlaid or (not self._ignores_writes and sum(map(_version_of, params)) != self._version_sum),
        )

    def entries_changed(self) -> bool:
        """Returns whether the state is not as it was noted."""
        return self._entries.changed()

    def note_places(self) -> list[int]:
        """Notes where the parameters lie; returns the indices of those whose memory is another."""
        before, self._addresses = self._addresses, list(map(self._address_of, self._params))
        self._strides = list(map(_strides_of, self._params))
        return [i for i, address in enumerate(self._addresses) if not before or address != before[i]]

    def note_entries(self, only: int | None = None) -> None:
        """Notes the entries of the state, or that of one parameter: those that have been looked at."""
        self._entries.note(None if only is None else self._params[only])

    def note_written(self, only: int | None = None) -> list[int]:
        """Notes the version counters, or that of one parameter.

        Returns:
            The indices of the parameters that were written since the last time.
        """
        if only is not None and self._versions:
            raised = self._params[only]._version - self._steps - self._versions[only]
            self._versions[only] += raised
            self._version_sum += raised
            return [only] if raised else []
        versions, steps = list(map(_version_of, self._params)), self._steps
        before = self._versions or [-1] * len(versions)
        self._versions, self._version_sum, self._steps = versions, sum(versions), 0
        return [i for i, (now, noted) in enumerate(zip(versions, before, strict=True)) if now != noted + steps]

    def bump(self, active: Sequence[int], only: int | None, is_alone: bool) -> None:
        """Raises the version counters of parameters that a step has written, as torch does, and notes them.

        Args:
            active: their indices.
            only: the index of the one parameter that was looked at before the step, if it is not all.
            is_alone: whether nothing else in the step has raised counters.
        """
        params, all_of_them = self._params, len(active) == len(self._params)
        torch.autograd.graph.increment_version(params if all_of_them else [params[index] for index in active])
        if self._ignores_writes:
            return
        if not is_alone or not self._own_counters or not self._versions:
            self.note_written(only)
            return
        self._version_sum += len(active)
        if all_of_them:
            self._steps += 1
            return
        for index in active:
            self._versions[index] += 1

    def _look_at(self, index: int) -> Changes:
        param, versions = self._params[index], self._versions
        if not self._addresses:
            return Changes(True, True, True)
        is_unwritten = self._ignores_writes or (versions and param._version == versions[index] + self._steps)
        return Changes(
            self._address_of(param) != self._addresses[index] or param.stride() != self._strides[index],
            self._entries.changed_of(param),
            self._is_overlaid or not is_unwritten,
        )


class GradientWatch:
    """Looks at the gradients of the parameters that had one in the step before.

    Attributes:
        places: the addresses that were written down for the kernel.
    """

    def __init__(self) -> None:
        self._active: list[Tensor] = []
        self._idle: list[Tensor] = []
        self._facts: list[list[object]] = []
        self.places: list[int] = []
        self._is_typed = False
        self._are_contiguous = False

    def look(self) -> tuple[list[Tensor], list[int]] | None:
        """Returns the gradients and where they lie, `places` itself if that is there; None if they look otherwise."""
        try:
            grads = list(map(_grad_of, self._active))
            # Gradients in the same places, such as those that are zeroed in place, need only half a look: torch saw
            # to it that they have the dtype and the shape of their parameters.
            is_same = self._is_typed and _all_equal(Tensor.data_ptr, grads, self.places)
            if is_same:
                if not _all_equal(Tensor.numel, grads, self._facts[0]) or not (
                    all(map(Tensor.is_contiguous, grads))
                    if self._are_contiguous
                    else _all_equal(_strides_of, grads, self._facts[1])
                ):
                    return None
            elif _facts_of(grads) != self._facts:
                return None
            places = self.places if is_same else list(map(Tensor.data_ptr, grads))
        except (AttributeError, TypeError, RuntimeError):  # a gradient vanished, or has no plain memory
            return None
        if list(map(_grad_of, self._idle)).count(None) != len(self._idle):
            return None
        return grads, places

    def note(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Notes gradients that were looked at closely."""
        found = [grad for grad in grads if grad is not None]
        self._active = [param for param, grad in zip(params, grads, strict=True) if grad is not None]
        self._idle = [param for param, grad in zip(params, grads, strict=True) if grad is None]
        self._facts = _facts_of(found)
        self._is_typed = not any(getattr(param, "grad_dtype", param.dtype) is None for param in params)
        self._are_contiguous = all(map(Tensor.is_contiguous, found))

    def forget(self) -> None:
        """Has no gradients look as they were: the parameters lie in memory in another way."""
        self._facts, self._is_typed = [], False


def _facts_of(grads: list[Tensor]) -> list[list[object]]:
    # Sizes and strides tell shapes apart, also those with as many elements, and cost less than shapes.
    return [
        list(map(Tensor.numel, grads)),
        list(map(_strides_of, grads)),
        list(map(_dtype_of, grads)),
        list(map(Tensor.get_device, grads)),
        list(map(Tensor.is_neg, grads)),
    ]


class _Entries:
    """The state as it was noted, and the tensors in it that kernels know by their addresses."""

    _KEYS = ("momentum_buffer", "master_weight")

    def __init__(self, params: Sequence[Tensor], state: State, address_of: Callable[[Tensor], int]) -> None:
        self._params = params
        self._state = state
        self._address_of = address_of
        self._noted: dict[Tensor, Any] | None = None
        self._kept: dict[Tensor, list[tuple[str, Tensor, int]]] = {}  # with their keys and addresses
        self._tensors: list[Tensor] = []
        self._addresses: list[int] = []
        self._alike: list[tuple[Tensor, str, Tensor]] = []

    def note(self, only: Tensor | None = None) -> None:
        if only is None or self._noted is None:
            self._noted = {param: dict(e) if isinstance(e, dict) else e for param, e in self._state.items()}
            self._kept = {}
        elif only in self._state:
            self._noted[only] = dict(self._state[only])
        else:
            self._noted.pop(only, None)
        for param in self._params if only is None else [only]:
            entry: Any = self._noted.get(param, {})
            if isinstance(entry, dict):
                tensors = [(key, entry[key]) for key in self._KEYS if isinstance(entry.get(key), Tensor)]
                self._kept[param] = [(key, tensor, self._address_of(tensor)) for key, tensor in tensors]
        self._tensors = [tensor for kept in self._kept.values() for _, tensor, _ in kept]
        self._addresses = [address for kept in self._kept.values() for _, _, address in kept]
        # Dictionaries compare by identity first and then by value, which two tensors of one element may share.
        self._alike = [(p, key, t) for p, kept in self._kept.items() for key, t, _ in kept if t.numel() == 1]

    def changed(self) -> bool:
        try:
            if self._state != self._noted or not _all_equal(self._address_of, self._tensors, self._addresses):
                return True
        except Exception:  # other tensors of many elements are neither equal nor unequal to the noted ones
            return True
        return bool(self._alike) and any(self._state[param][key] is not tensor for param, key, tensor in self._alike)

    def changed_of(self, param: Tensor) -> bool:
        entry, noted = self._state.get(param), (self._noted or {}).get(param)
        try:
            if entry != noted or self._noted is None:
                return True
        except Exception:
            return True
        kept = self._kept.get(param, ())
        return any(entry[key] is not tensor or self._address_of(tensor) != at for key, tensor, at in kept)  # type: ignore[index]
