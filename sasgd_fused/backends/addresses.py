"""The addresses of weights and gradients that a kernel is given, in the parameters' layouts."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sasgd_fused.backends.watch import GradientWatch
from sasgd_fused.layout import has_layout_of, in_layout_of, is_dense
from sasgd_fused.memory import is_away
from sasgd_fused.plan import StepPlan


class Weights:
    """The addresses of the weights.

    Attributes:
        table: one address for each parameter: of what is updated; 0 where that is a master that is not there.
        params: one address for each parameter that has a master: where the rounded master goes; 0 for the others.
        strided: dense copies, by index, of the parameters with gaps in memory; the kernel works on these.
        away: indices of the parameters whose memory was taken away for a time.
    """

    def __init__(self, plan: StepPlan) -> None:
        self._params = plan.params
        self._names = plan.names
        self._have_masters = [k for k, precision in enumerate(plan.precisions) if precision.has_master]
        self._own = array("Q")  # the addresses of the parameters, or of their dense copies
        self.table = array("Q")
        self.params = array("Q", bytes(8 * len(plan.params)))
        self.strided: dict[int, Tensor] = {}
        self.away: set[int] = set()

    def rewrite(self) -> None:
        """Writes the table anew, without masters."""
        self.away = {index for index, param in enumerate(self._params) if is_away(param)}
        self.strided = {i: torch.empty_like(p) for i, p in enumerate(self._params) if not is_dense(p)}
        self._own = array("Q", map(Tensor.data_ptr, self._params))
        for index, dense in self.strided.items():
            self._own[index] = dense.data_ptr()
        self.table = array("Q", self._own)

    def check_presence(self, active: Collection[int]) -> None:
        """Checks that the memory of the parameters to be updated is there.

        Raises:
            ValueError: a parameter's storage was taken away.
        """
        for index in self.away.intersection(active):
            raise ValueError(f"params: {self._names[index]} has no memory of its own, want a plain dense tensor")

    def place_masters(self, masters: Mapping[int, Tensor]) -> None:
        """Has masters be updated in the place of their parameters.

        Args:
            masters: by the indices of the parameters, in whose layouts they are.
        """
        for index in self._have_masters:
            self.params[index] = self._own[index]
            self.table[index] = masters[index].data_ptr() if index in masters else 0

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


class GradientTable(NamedTuple):
    """What a kernel is told of the gradients. No table is changed once it is there.

    Attributes:
        active: indices of the parameters that have one; the same list as long as these are the same. Whoever keeps it
            compares by `is`, and knows so that a step is like the one before.
        addresses: one for each parameter, 0 where there is no gradient.
        dtypes: a dtype code for each parameter's gradient.
    """

    active: list[int]
    addresses: array[int]
    dtypes: array[int]


class GradientTables:
    """Keeps the table of the gradients.

    Args:
        plan: whose parameters have them.
        dtype_codes: of the dtypes that the kernel takes.

    Attributes:
        watch: tells whether gradients look as those that the table was made for.
        table: of the gradients of the last step.
        converted: the places among the active of those that a kernel cannot read as they are, and to which dtype they
            are converted.
    """

    def __init__(self, plan: StepPlan, dtype_codes: dict[torch.dtype, int]) -> None:
        self.watch = GradientWatch()
        self.table = GradientTable([], array("Q"), array("B"))
        self.converted: dict[int, torch.dtype] = {}
        self._plan = plan
        self._dtype_codes = dtype_codes
        self._singles: dict[int, list[int]] = {}

    def bind(self) -> list[Tensor]:
        """Takes and checks the gradients one by one, and notes what is to be done with gradients like these.

        Returns:
            What the table points to, to be kept until the kernel is launched.

        Raises:
            ValueError: a gradient does not fit its parameter.
        """
        grads, params = self._plan.gather_gradients(), self._plan.params
        active = [i for i, grad in enumerate(grads) if grad is not None]
        active = self.table.active if active == self.table.active else active
        dtypes, converted = array("B", bytes(len(params))), {}
        found = [grad for grad in grads if grad is not None]
        for k, (index, grad) in enumerate(zip(active, found, strict=True)):
            dtype = _kernel_dtype(grad, params[index])
            if _must_convert(grad, params[index], dtype):
                converted[k] = dtype
            dtypes[index] = self._dtype_codes[dtype]
        self.watch.forget()  # an interrupt before the end leaves nothing that looks as if it were done
        self.converted = converted
        self.table = GradientTable(active, array("Q"), dtypes)
        tensors = self.rewrite(found, list(map(Tensor.data_ptr, found)))
        self.watch.note(params, grads)
        return tensors

    def rewrite(self, grads: list[Tensor], places: list[int]) -> list[Tensor]:
        """Writes the addresses of gradients that look like those that were bound.

        Args:
            grads: one for each active parameter.
            places: where they lie.

        Returns:
            What the table points to.
        """
        active, _, dtypes = self.table
        tensors, found = grads, places
        if self.converted:
            tensors = list(grads)
            for k, dtype in self.converted.items():
                tensors[k] = in_layout_of(grads[k], self._plan.params[active[k]], dtype)
            found = list(map(Tensor.data_ptr, tensors))
        if len(active) == len(self._plan.params):
            addresses = array("Q", found)
        else:
            addresses = array("Q", bytes(8 * len(self._plan.params)))
            for index, address in zip(active, found, strict=True):
                addresses[index] = address
        if addresses != self.table.addresses:
            self.table = GradientTable(active, addresses, dtypes)
        self.watch.places = places
        return tensors

    def bind_one(self, index: int) -> tuple[GradientTable, list[Tensor]]:
        """Takes and checks the gradient of one parameter; returns a table of it alone, and what that points to.

        Raises:
            ValueError: it does not fit the parameter.
        """
        count, param = len(self._plan.params), self._plan.params[index]
        addresses, dtypes = array("Q", bytes(8 * count)), array("B", bytes(count))
        grad = self._plan.gradient_of(index)
        if grad is None:
            return GradientTable([], addresses, dtypes), []
        dtype = _kernel_dtype(grad, param)
        if _must_convert(grad, param, dtype):
            grad = in_layout_of(grad, param, dtype)
        addresses[index], dtypes[index] = grad.data_ptr(), self._dtype_codes[dtype]
        return GradientTable(self._singles.setdefault(index, [index]), addresses, dtypes), [grad]


def _kernel_dtype(grad: Tensor, param: Tensor) -> torch.dtype:
    return grad.dtype if grad.dtype in (param.dtype, torch.float32) else torch.float32


def _must_convert(grad: Tensor, param: Tensor, dtype: torch.dtype) -> bool:
    # Torch may put off a negation, or a filling with zeros: then the values are not those in memory.
    is_lazy = grad.is_neg() or grad._is_zerotensor()
    return dtype != grad.dtype or is_lazy or not has_layout_of(grad, param)
