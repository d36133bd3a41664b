"""What a step looks at to notice what others have changed since the one before.

Anybody may put another tensor in the place of one that a kernel knows by its address. So a step reads a few attributes
of every tensor and compares them, in lists, with what was noted. Mapping a function over a list costs 30-60 ns for a
tensor, a fifth less than a comprehension (docs/kernels.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from operator import attrgetter, is_, itemgetter
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
        entries: the keys under which the state has others, or tensors that lie in other memory.
        written: parameters were written, or lie over memory that others write too.
    """

    moved: bool
    entries: Sequence[str]
    written: bool

    def may_part_masters(self) -> bool:
        """Returns whether masters may not be what their parameters are any more."""
        return self.moved or self.written or "master_weight" in self.entries


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
        self._entries = _Entries(plan, state, self._address_of)
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
        # Strides tell shapes of as many elements apart, and gradients have as many as their parameters. The version
        # counter of a tensor in one place only grows, so their sum changes whenever one of them does.
        return Changes(
            not _all_equal(self._address_of, params, self._addresses)
            or not _all_equal(_strides_of, params, self._strides),
            self._entries.changed(),
            self._is_overlaid or (not self._ignores_writes and sum(map(_version_of, params)) != self._version_sum),
        )

    def entries_changed(self) -> bool:
        """Returns whether the state is not as it was noted."""
        return bool(self._entries.changed())

    def moved(self) -> list[int]:
        """Returns the indices of the parameters whose memory or layout is another than was noted."""
        places = zip(self._addresses, self._strides, strict=True) if self._addresses else repeat((-1, ()))
        return [
            index
            for index, (param, noted) in enumerate(zip(self._params, places, strict=False))
            if (self._address_of(param), param.stride()) != noted
        ]

    def note_places(self) -> None:
        """Notes where the parameters lie."""
        self._strides = list(map(_strides_of, self._params))
        self._addresses = list(map(self._address_of, self._params))

    def note_entries(self, only: int | None = None) -> None:
        """Notes the entries of the state, or that of one parameter: those that have been looked at."""
        self._entries.note(only)

    def written(self) -> list[int]:
        """Returns the indices of the parameters that were written since the version counters were noted."""
        before, steps = self._versions or [-1] * len(self._params), self._steps
        return [i for i, (p, noted) in enumerate(zip(self._params, before, strict=True)) if p._version != noted + steps]

    def note_written(self, only: int | None = None) -> None:
        """Notes the version counters, or that of one parameter."""
        if only is not None and self._versions:
            raised = self._params[only]._version - self._steps - self._versions[only]
            self._versions[only] += raised
            self._version_sum += raised
            return
        versions = list(map(_version_of, self._params))
        self._versions, self._version_sum, self._steps = versions, sum(versions), 0

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
            return Changes(True, [kept.key for kept in self._entries.kept], True)
        is_unwritten = self._ignores_writes or (versions and param._version == versions[index] + self._steps)
        return Changes(
            self._address_of(param) != self._addresses[index] or param.stride() != self._strides[index],
            self._entries.changed_at(index),
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
    """What backends keep in the state, as it was noted. What else others have there is theirs."""

    def __init__(self, plan: StepPlan, state: State, address_of: Callable[[Tensor], int]) -> None:
        self._params = plan.params
        self._state = state
        keys = {
            "momentum_buffer": True,
            "master_weight": plan.has_masters,
            "row_norm_sq": plan.options.freezes_norms,
            "rounding_step": any(precision.is_stochastic for precision in plan.precisions),
            "gradient_norm_sq": plan.options.is_relative,
        }
        self.kept = [_Kept(key, address_of) for key, is_used in keys.items() if is_used]
        self._is_noted = False
        self._owners: list[object] | None = None  # whose entries the state has; None: to be found anew
        self._entries: list[object] = []  # these

    def note(self, only: int | None = None) -> None:
        chosen = range(len(self._params)) if only is None or not self._is_noted else [only]
        for index in chosen:
            entry = self._state.get(self._params[index], {})
            for kept in self.kept:
                kept.note(index, entry)
        self._is_noted, self._owners = True, None
        if only is None:  # for one of many the next look at all does it
            self._find()

    def changed(self) -> list[str]:
        try:
            is_known = list(self._state) == self._owners
        except Exception:  # parameters in another order: two of many elements are neither equal nor unequal
            is_known = False
        if not is_known or not all(map(is_, self._state.values(), self._entries)):
            self._find()
        changed = []
        for kept in self.kept:  # no comprehension, which may be a call more
            if not self._is_noted or kept.differs():
                changed.append(kept.key)
        return changed

    def changed_at(self, index: int) -> list[str]:
        entry = self._state.get(self._params[index], {})
        return [kept.key for kept in self.kept if not self._is_noted or kept.differs_at(index, entry)]

    def _find(self) -> None:
        entries = [self._state.get(param, {}) for param in self._params]
        for kept in self.kept:
            kept.look_into(entries)
        self._entries, self._owners = list(self._state.values()), list(self._state)


class _Kept:
    """What the state has under one key.

    Other strides of the same tensor (``buffer.t_()``) are not looked for, which would nearly double the time of a look.

    Args:
        key: of each entry.
        address_of: tells where a tensor lies.
    """

    def __init__(self, key: str, address_of: Callable[[Tensor], int]) -> None:
        self.key = key
        self._get = itemgetter(key)
        self._address_of = address_of
        self._values: dict[int, Any] = {}  # by the index of the parameter
        self._addresses: dict[int, int] = {}  # of those that are tensors
        self._lists: tuple[list[Any], list[int]] = [], []  # both once more
        self._holders: list[dict[str, Any]] = []  # the entries that have a value
        self._others: list[dict[str, Any]] = []

    def note(self, index: int, entry: dict[str, Any]) -> None:
        value = entry.get(self.key)
        self._addresses.pop(index, None)
        if isinstance(value, Tensor) and value.layout == torch.strided:
            self._addresses[index] = self._address_of(value)
        self._values.pop(index, None)
        if value is not None:
            self._values[index] = value

    def look_into(self, entries: list[dict[str, Any]]) -> None:
        self._holders = [entries[index] for index in self._values]
        self._others = [entry for index, entry in enumerate(entries) if index not in self._values]
        self._lists = list(self._values.values()), list(self._addresses.values())

    def differs(self) -> bool:
        values, addresses = self._lists
        try:
            found = list(map(self._get, self._holders))
            # Addresses first: tensors at the same are the same, and are not asked whether they are equal. That may
            # take a while, and waits for a GPU.
            if addresses and not _all_equal(self._address_of, found, addresses):
                return True
            if found != values:
                return True
        except Exception:  # one is not there any more, or is no tensor, or is neither equal nor unequal
            return True
        others = self._others
        return bool(others) and list(map(dict.get, others, repeat(self.key))).count(None) != len(others)

    def differs_at(self, index: int, entry: dict[str, Any]) -> bool:
        if entry.get(self.key) is not self._values.get(index):
            return True
        return index in self._addresses and self._address_of(self._values[index]) != self._addresses[index]
