"""The momentum buffers of a kernel: made, laid out like their parameters, and found again at every step."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.hyperparameters import GroupValues
from sasgd_fused.layout import has_layout_of, in_layout_of
from sasgd_fused.plan import State, StepPlan


def values_in_state(state: State, key: str, params: Sequence[Tensor]) -> list[Any]:
    """One entry of each of these parameters' state, or, if they are not few, of everybody's, which is quicker."""
    if 4 * len(params) < len(state):
        return [state[param].get(key) if param in state else None for param in params]
    try:
        return [of_param.get(key) for of_param in state.values()]
    except AttributeError:  # others may have put anything else into the state
        return [of_param.get(key) for of_param in state.values() if isinstance(of_param, dict)]


class Owners:
    """Whose the values in a state are: somebody may exchange entries, so that they come in the same order.

    Args:
        state: the optimizer's, as it is now.
        params: those whose values were taken.
    """

    def __init__(self, state: State, params: Sequence[Tensor]) -> None:
        self._state = state
        self._keys = [] if 4 * len(params) < len(state) else list(state)  # taken by parameter, they are its own

    def hold(self) -> bool:
        """Whether they are the same still; more may have come behind."""
        return len(self._state) >= len(self._keys) and all(map(is_, self._state, self._keys))


class MomentumTable:
    """Addresses of the momentum buffers, which it makes, in the plan's dtypes and the parameters' layouts.

    Attributes:
        table: one address for each parameter, 0 where there is no momentum or no gradient.
        first: 1 for each parameter whose buffer is new, else 0; the same until `launched` is called.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        self._plan = plan
        self._state = state
        self.table = array("Q")
        self._no_first = bytes(len(plan.params))
        # Made, but not in a step yet: if that fails, they are new in the next one too.
        self._made: dict[int, Tensor] = {}
        self.first = self._no_first
        self._known: list[Tensor | None] | None = None
        self._owners = Owners(state, plan.params)  # of these
        self._present: list[Tensor] = []
        self._addresses: list[int] = []
        self._active: list[int] = []
        self._moving: list[bool] = []

    def check(self) -> None:
        """Looks whether the buffers are those of the step before, and checks them if not.

        Raises:
            ValueError: a buffer does not have its parameter's shape.
        """
        buffers = self._buffers()
        if self._hold(buffers):
            self._known = buffers
            return
        self._known = None
        self._plan.check_momentum(self._state)

    def is_attached(self, active: list[int], values: Sequence[GroupValues]) -> bool:
        """Whether the table is up to date for these parameters and hyperparameters."""
        moving = [group.momentum != 0 for group in values]
        return self._known is not None and active is self._active and moving == self._moving

    def attach(self, active: list[int], values: Sequence[GroupValues]) -> None:
        """Brings the table up to date, with new zero buffers where there are none.

        Args:
            active: the parameters that are updated in this step.
            values: the groups' hyperparameters.
        """
        if self.is_attached(active, values):
            return
        moving = [group.momentum != 0 for group in values]
        first = bytearray(self._no_first)
        self.table = array("Q", bytes(8 * len(first)))
        for index in active:
            if not moving[self._plan.group_of[index]]:
                continue
            param, dtype = self._plan.params[index], self._plan.storage[index].momentum_dtype
            state = self._state[param]
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = self._made[index] = torch.zeros_like(param, dtype=dtype)
            elif buffer.dtype != dtype:
                buffer = in_layout_of(buffer, param, dtype)
            elif not has_layout_of(buffer, param):
                buffer.data = in_layout_of(buffer, param, dtype)  # the same tensor, of which more may be known
            first[index] = self._made.get(index) is buffer
            state["momentum_buffer"] = buffer
            self.table[index] = buffer.data_ptr()
        self._active, self._moving = active, moving
        self._known, self._owners = self._buffers(), Owners(self._state, self._plan.params)
        self._present = [buffer for buffer in self._known if buffer is not None]
        self._addresses = list(map(Tensor.data_ptr, self._present))
        self.first = bytes(first)

    def launched(self) -> None:
        """Notes that a step with these buffers is under way."""
        if self._made:
            self._made, self.first = {}, self._no_first

    def invalidate(self) -> None:
        """Has the table written anew: the parameters lie in memory in another way."""
        self._known = None

    def _hold(self, buffers: list[Tensor | None]) -> bool:
        """Whether the buffers are those of the step before, and where they were (``buffer.data = ...`` moves them)."""
        known = self._known
        return (
            known is not None
            and len(buffers) >= len(known)
            and all(map(is_, buffers, known))
            and self._owners.hold()
            and not any(buffer is not None for buffer in buffers[len(known) :])  # the state has more of other things
            and list(map(Tensor.data_ptr, self._present)) == self._addresses
        )

    def _buffers(self) -> list[Tensor | None]:
        return values_in_state(self._state, "momentum_buffer", self._plan.params)
