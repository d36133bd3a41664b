"""The addresses of weights and gradients that a kernel is given, in the parameters' layouts."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from sasgd_fused.layout import has_layout_of, in_layout_of, is_dense
from sasgd_fused.memory import is_away
from sasgd_fused.plan import StepPlan

_grad_of = attrgetter("grad")
_dtype_of = attrgetter("dtype")


class Weights:
    """The addresses of the weights.

    Attributes:
        table: one address for each parameter: of what is updated.
        params: one address for each parameter that has a master: where the rounded master goes; 0 for the others.
        strided: dense copies, by index, of the parameters with gaps in memory; the kernel works on these.
        away: indices of the parameters whose memory was taken away for a time.
    """

    def __init__(self, plan: StepPlan) -> None:
        self._params = plan.params
        self._names = plan.names
        self.table = array("Q")
        self.params = array("Q", bytes(8 * len(plan.params)))
        self.strided: dict[int, Tensor] = {}
        self.away: set[int] = set()

    def rewrite(self) -> None:
        """Writes the table anew, without masters."""
        self.away = {index for index, param in enumerate(self._params) if is_away(param)}
        self.strided = {i: torch.empty_like(p) for i, p in enumerate(self._params) if not is_dense(p)}
        self.table = array("Q", map(Tensor.data_ptr, self._params))
        self.params = array("Q", bytes(8 * len(self._params)))
        for index, dense in self.strided.items():
            self.table[index] = dense.data_ptr()

    def check_presence(self, active: Collection[int]) -> None:
        """Checks that the memory of the parameters to be updated is there.

        Raises:
            ValueError: a parameter's storage was taken away.
        """
        for index in self.away.intersection(active):
            raise ValueError(f"params: {self._names[index]} has no memory of its own, want a plain dense tensor")

    def is_there(self, index: int) -> bool:
        """Returns whether the memory of a parameter is there."""
        return index not in self.away

    def place_masters(self, masters: Iterable[tuple[int, Tensor]]) -> None:
        """Has these be updated in the place of the parameters with these indices.

        Args:
            masters: in the parameters' layouts, always for the same indices.
        """
        for index, master in masters:
            self.params[index] = self.params[index] or self.table[index]
            self.table[index] = master.data_ptr()

    @torch.no_grad()
    def load_strided(self) -> None:
        """Copies the parameters with gaps to their dense copies."""
        for index, dense in self.strided.items():
            if index not in self.away:
                dense.copy_(self._params[index])

    @torch.no_grad()
    def store_strided(self, active: Collection[int]) -> None:
        """Copies those that were updated back."""
        for index, dense in self.strided.items():
            if index in active:
                self._params[index].copy_(dense)


class Gathered(NamedTuple):
    """The gradients of one step.

    Attributes:
        active: indices of the parameters that have one; the same list as long as these are the same.
        tensors: what the addresses point to, to be kept until the kernel is launched.
        addresses: one for each parameter, 0 where there is no gradient. No table is changed once it was returned.
        dtypes: a dtype code for each parameter's gradient.
    """

    active: list[int]
    tensors: list[Tensor]
    addresses: array[int]
    dtypes: array[int]


class Gradients:
    """Takes the gradients of each step; looks closer only at those that do not look like the ones before.

    Args:
        plan: whose parameters have them.
        dtype_codes: of the dtypes that the kernel takes.
    """

    def __init__(self, plan: StepPlan, dtype_codes: dict[torch.dtype, int]) -> None:
        self._plan = plan
        self._dtype_codes = dtype_codes
        self._active: list[int] = []
        self._active_params: list[Tensor] = []
        self._idle_params: list[Tensor] = list(plan.params)
        self._facts: list[list[object]] = []  # what was seen of gradients that were looked at closely
        self._all_contiguous = False
        self._is_typed = False
        self._converted: dict[int, torch.dtype] = {}
        self._addresses: list[int] = []  # of the gradients, and below those in the table
        self._written: list[int] | None = None
        self._table = array("Q")
        self._dtypes = array("B")
        self._singles: dict[int, list[int]] = {}

    def gather(self) -> Gathered | None:
        """Takes the gradients; None if they do not look like those of the step before, so that `bind` must look."""
        try:
            grads = list(map(_grad_of, self._active_params))
            addresses = list(map(Tensor.data_ptr, grads))
            # Gradients in the same places, such as those that are zeroed in place, need only half a look: torch saw
            # to it that they have the dtype and the shape of their parameters.
            if self._is_typed and addresses == self._addresses:
                if list(map(Tensor.numel, grads)) != self._facts[0]:
                    return None
                if not (
                    all(map(Tensor.is_contiguous, grads))
                    if self._all_contiguous
                    else list(map(Tensor.stride, grads)) == self._facts[2]
                ):
                    return None
            elif _look(grads) != self._facts:
                return None
        except (AttributeError, TypeError, RuntimeError):  # a gradient vanished, or has no plain memory
            return None
        if list(map(_grad_of, self._idle_params)).count(None) != len(self._idle_params):
            return None
        self._addresses = addresses  # only now: what failed must fail again
        if self._converted:
            grads, addresses = self._convert(grads, addresses)
        if addresses != self._written:
            self._write(addresses)
        return Gathered(self._active, grads, self._table, self._dtypes)

    def bind(self) -> Gathered:
        """Takes and checks the gradients one by one, and notes what is to be done with gradients like these.

        Raises:
            ValueError: a gradient does not fit its parameter.
        """
        grads, params = self._plan.gather_gradients(), self._plan.params
        active = [i for i, grad in enumerate(grads) if grad is not None]
        if active != self._active:
            self._active = active
        self._active_params = [params[i] for i in self._active]
        self._idle_params = [param for param, grad in zip(params, grads, strict=True) if grad is None]
        found = [grad for grad in grads if grad is not None]
        self._facts = _look(found)
        self._all_contiguous = all(map(Tensor.is_contiguous, found))
        self._is_typed = not any(getattr(param, "grad_dtype", param.dtype) is None for param in params)
        self._addresses = list(map(Tensor.data_ptr, found))
        self._converted = {}
        self._dtypes = array("B", bytes(len(params)))
        for k, (param, grad) in enumerate(zip(self._active_params, found, strict=True)):
            dtype = _kernel_dtype(grad, param)
            if _must_convert(grad, param, dtype):
                self._converted[k] = dtype
            self._dtypes[self._active[k]] = self._dtype_codes[dtype]
        found, addresses = self._convert(found, self._addresses)
        self._write(addresses)
        return Gathered(self._active, found, self._table, self._dtypes)

    def gather_one(self, index: int) -> Gathered:
        """Takes and checks the gradient of one parameter alone.

        Raises:
            ValueError: it does not fit the parameter.
        """
        active = self._singles.setdefault(index, [index])
        addresses, dtypes = array("Q", bytes(8 * len(self._plan.params))), array("B", bytes(len(self._plan.params)))
        grad = self._plan.gather_gradients(index)[index]
        if grad is None:
            return Gathered([], [], addresses, dtypes)
        param = self._plan.params[index]
        dtype = _kernel_dtype(grad, param)
        if _must_convert(grad, param, dtype):
            grad = in_layout_of(grad, param, dtype)
        addresses[index], dtypes[index] = grad.data_ptr(), self._dtype_codes[dtype]
        return Gathered(active, [grad], addresses, dtypes)

    def forget(self) -> None:
        """Has the gradients looked at closely: the parameters lie in memory in another way."""
        self._facts, self._addresses, self._is_typed = [], [], False

    def _convert(self, grads: Sequence[Tensor], addresses: Sequence[int]) -> tuple[list[Tensor], list[int]]:
        grads, addresses = list(grads), list(addresses)
        for k, dtype in self._converted.items():
            grads[k] = in_layout_of(grads[k], self._active_params[k], dtype)
            addresses[k] = grads[k].data_ptr()
        return grads, addresses

    def _write(self, addresses: list[int]) -> None:
        self._written = addresses
        if not self._idle_params:
            self._table = array("Q", addresses)
            return
        self._table = array("Q", bytes(8 * len(self._plan.params)))
        for index, address in zip(self._active, addresses, strict=True):
            self._table[index] = address


def _look(grads: list[Tensor]) -> list[list[object]]:
    # Sizes and strides tell shapes apart, also those with as many elements, and cost less than shapes.
    return [
        list(map(Tensor.numel, grads)),
        list(map(_dtype_of, grads)),
        list(map(Tensor.stride, grads)),
        list(map(Tensor.get_device, grads)),
        list(map(Tensor.is_neg, grads)),
    ]


def _kernel_dtype(grad: Tensor, param: Tensor) -> torch.dtype:
    return grad.dtype if grad.dtype in (param.dtype, torch.float32) else torch.float32


def _must_convert(grad: Tensor, param: Tensor, dtype: torch.dtype) -> bool:
    # Torch may put off a negation, or a filling with zeros: then the values are not those in memory.
    is_lazy = grad.is_neg() or grad._is_zerotensor()
    return dtype != grad.dtype or is_lazy or not has_layout_of(grad, param)
