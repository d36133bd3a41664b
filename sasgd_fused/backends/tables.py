"""Tables of addresses for kernels: looked over at every step, written anew only where something changed.

A step must read a few attributes of every tensor, since anybody may have put another tensor in its place. Mapping the
functions below over a list costs 30-60 ns for a tensor, a fifth less than a comprehension (docs/kernels.md).
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter

import torch
from torch import Tensor

from sasgd_fused.layout import has_layout_of, in_layout_of, is_dense
from sasgd_fused.memory import is_away
from sasgd_fused.plan import StepPlan

_grad_of = attrgetter("grad")
_address_of = Tensor.data_ptr
_strides_of = Tensor.stride
_is_contiguous = Tensor.is_contiguous
_dtype_of = attrgetter("dtype")


def _is_lazy(tensor: Tensor) -> bool:
    """Whether the values are not those in memory: torch may put off a negation, or a filling with zeros."""
    return tensor.is_neg() or tensor._is_zerotensor()


class _Strides:
    """What the strides of a list of tensors were, and a cheap way to see whether they still are."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._all_contiguous = all(map(_is_contiguous, tensors))
        self._strides = list(map(_strides_of, tensors))

    def hold_for(self, tensors: Sequence[Tensor]) -> bool:
        if self._all_contiguous:
            return all(map(_is_contiguous, tensors))
        return list(map(_strides_of, tensors)) == self._strides


class WeightTable:
    """Addresses of the weights.

    Attributes:
        table: one address for each parameter: of what is updated.
        copies: one address for each parameter that has a master: where the rounded master goes; 0 for the others.
        gapped: dense copies, by index, of the parameters with gaps in memory; the kernel works on these.
        away: indices of the parameters whose memory was taken away for a time.
    """

    def __init__(self, plan: StepPlan) -> None:
        self._params = plan.params
        self._names = plan.names
        self._addresses: list[int] = []
        self._strides: list[tuple[int, ...]] = []
        self.table = array("Q")
        self.copies = array("Q", bytes(8 * len(plan.params)))
        self.gapped: dict[int, Tensor] = {}
        self.away: set[int] = set()

    def is_current(self) -> bool:
        """Whether every parameter is where and as it was when the table was written."""
        # Strides tell shapes of as many elements apart, and gradients have as many as their parameters.
        return (
            list(map(_address_of, self._params)) == self._addresses
            and list(map(_strides_of, self._params)) == self._strides
        )

    def rewrite(self) -> list[int]:
        """Writes the table anew; returns the indices of the parameters whose memory is another."""
        before, addresses = self._addresses, list(map(_address_of, self._params))
        self.away = {index for index, param in enumerate(self._params) if is_away(param)}
        self.gapped = {i: torch.empty_like(p) for i, p in enumerate(self._params) if not is_dense(p)}
        self.table = array("Q", addresses)
        self.copies = array("Q", bytes(8 * len(self._params)))
        for index, dense in self.gapped.items():
            self.table[index] = dense.data_ptr()
        # Last: if anything above was interrupted, the table is not current, and is written anew.
        self._addresses, self._strides = addresses, list(map(_strides_of, self._params))
        return [i for i, address in enumerate(addresses) if not before or address != before[i]]

    def check_presence(self, active: Collection[int]) -> None:
        """Checks that the memory of the parameters to be updated is there.

        Raises:
            ValueError: a parameter's storage was taken away.
        """
        for index in self.away.intersection(active):
            raise ValueError(f"params: {self._names[index]} has no memory of its own, want a plain dense tensor")

    def place_masters(self, masters: Iterable[tuple[int, Tensor]]) -> None:
        """Has these be updated in the place of the parameters with these indices.

        Args:
            masters: in the parameters' layouts, always for the same indices.
        """
        table, copies = array("Q", self.table), array("Q", self.copies)
        for index, master in masters:
            copies[index] = copies[index] or table[index]
            table[index] = master.data_ptr()
        self.table, self.copies = table, copies

    @torch.no_grad()
    def fill_gapped(self) -> None:
        """Copies the parameters with gaps to their dense copies."""
        for index, dense in self.gapped.items():
            if index not in self.away:
                dense.copy_(self._params[index])

    @torch.no_grad()
    def empty_gapped(self, active: Collection[int]) -> None:
        """Copies those that were updated back."""
        for index, dense in self.gapped.items():
            if index in active:
                self._params[index].copy_(dense)


class GradientTable:
    """Addresses of the gradients, in the parameters' layouts.

    Attributes:
        active: indices of the parameters that have a gradient; a new list whenever that changes.
        table: one address for each parameter, 0 where there is no gradient.
        codes: a dtype code for each parameter's gradient.
    """

    def __init__(self, plan: StepPlan, dtype_codes: dict[torch.dtype, int]) -> None:
        self._plan = plan
        self._dtype_codes = dtype_codes
        self.active: list[int] = []
        self.table = array("Q", bytes(8 * len(plan.params)))
        self.codes = array("B", bytes(len(plan.params)))
        self._active_params: list[Tensor] = []
        self._idle_params: list[Tensor] = list(plan.params)
        self._grads: list[Tensor] = []
        # What was seen of the gradients in `bind`: those that look the same need no closer look.
        self._facts: list[list[object]] = []
        self._strides = _Strides([])
        self._recast: dict[int, torch.dtype] = {}
        self._is_typed = False
        self._addresses: list[int] = []
        self._written: list[int] | None = None

    def gather(self) -> bool:
        """Takes the gradients; False if they do not look like those of the step before, so that `bind` must look."""
        try:
            grads = list(map(_grad_of, self._active_params))
            addresses = list(map(_address_of, grads))
            # Gradients in the same places, such as those that are zeroed in place, need only half a look: torch saw
            # to it that they have the dtype and the shape of their parameters.
            same = self._is_typed and addresses == self._addresses
            known = (
                list(map(Tensor.numel, grads)) == self._facts[0] and self._strides.hold_for(grads)
                if same
                else self._look(grads) == self._facts
            )
            if not known:
                return False
        except (AttributeError, TypeError, RuntimeError):  # a gradient vanished, or has no plain memory
            return False
        if any(param.grad is not None for param in self._idle_params):
            return False
        self._grads, self._addresses = grads, addresses  # only now: what failed must fail again
        return True

    def invalidate(self) -> None:
        """Has the gradients bound anew: the parameters lie in memory in another way."""
        self._facts, self._addresses, self._is_typed = [], [], False

    def release(self) -> None:
        """Lets go of the gradients, so that they are freed when they are set to None."""
        self._grads = []

    def bind(self) -> None:
        """Takes and checks the gradients one by one, and notes what is to be done with gradients like these.

        Raises:
            ValueError: a gradient does not fit its parameter.
        """
        grads = self._plan.gather_gradients()
        params = self._plan.params
        active = [i for i, grad in enumerate(grads) if grad is not None]
        if active != self.active:
            self.active = active
        self._active_params = [params[i] for i in self.active]
        self._idle_params = [param for param, grad in zip(params, grads, strict=True) if grad is None]
        self._grads = [grad for grad in grads if grad is not None]
        self._facts = self._look(self._grads)
        self._strides = _Strides(self._grads)
        self._is_typed = not any(getattr(param, "grad_dtype", param.dtype) is None for param in params)
        self._addresses = list(map(_address_of, self._grads))
        self._written = None
        self._recast = {}
        self.codes = array("B", bytes(len(params)))
        for k, (param, grad) in enumerate(zip(self._active_params, self._grads, strict=True)):
            dtype = grad.dtype if grad.dtype in (param.dtype, torch.float32) else torch.float32
            if dtype != grad.dtype or _is_lazy(grad) or not has_layout_of(grad, param):
                self._recast[k] = dtype
            self.codes[self.active[k]] = self._dtype_codes[dtype]

    def write(self) -> list[Tensor]:
        """Brings the table up to date; returns the tensors it points to, to be kept until the kernel has run."""
        grads, addresses = self._grads, self._addresses
        if self._recast:
            grads, addresses = list(grads), list(addresses)
            for k, dtype in self._recast.items():
                grads[k] = in_layout_of(grads[k], self._active_params[k], dtype)
                addresses[k] = grads[k].data_ptr()
        if addresses != self._written:
            self._written = addresses
            if self._idle_params:
                self.table = array("Q", bytes(8 * len(self._plan.params)))
                for index, address in zip(self.active, addresses, strict=True):
                    self.table[index] = address
            else:
                self.table = array("Q", addresses)
        return grads

    @staticmethod
    def _look(grads: list[Tensor]) -> list[list[object]]:
        # Sizes and strides tell shapes apart, also those with as many elements, and cost less than shapes.
        return [
            list(map(Tensor.numel, grads)),
            list(map(_dtype_of, grads)),
            list(map(_strides_of, grads)),
            list(map(Tensor.get_device, grads)),
            list(map(Tensor.is_neg, grads)),
        ]
