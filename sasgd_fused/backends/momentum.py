"""The momentum buffers of a kernel: made, laid out like their parameters, and found again."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.device_state import STARTED, Flags
from sasgd_fused.layout import has_layout_of, in_layout_of
from sasgd_fused.plan import State, StepPlan


class MomentumBuffers:
    """Makes the momentum buffers, in the plan's dtypes and the parameters' layouts, and keeps their addresses.

    Args:
        plan: whose parameters.
        state: the optimizer's.
        flags: by which the kernel knows whether a buffer has taken its first gradient.

    Attributes:
        table: one address for each parameter, 0 where there is no momentum or no buffer yet.
        active: the parameters of the step that the table was written for.
        has_momentum: of each group in that step, whether its momentum is not 0.
    """

    def __init__(self, plan: StepPlan, state: State, flags: Flags) -> None:
        self._plan = plan
        self._state = state
        self._flags = flags
        self.table = array("Q", bytes(8 * len(plan.params)))
        self._buffers: dict[int, Tensor] = {}
        self.active: list[int] = []
        self.has_momentum: list[bool] = []

    def are_attached(self, active: list[int], has_momentum: list[bool]) -> bool:
        """Returns whether the table holds all that a step needs, if the state has not changed; then is for that step.

        Args:
            active: the parameters that are updated.
            has_momentum: of each group, whether its momentum is not 0.
        """
        group_of, params = self._plan.group_of, self._plan.params
        if has_momentum != self.has_momentum or not all(
            self.table[i] or not has_momentum[group_of[i]] or (i in self._buffers and not params[i].numel())
            for i in active
        ):
            return False
        self.active = active
        return True

    def must_make(self, active: list[int], has_momentum: list[bool]) -> bool:
        """Returns whether `attach` would make buffers, or lay them out anew."""
        return any(
            has_momentum[self._plan.group_of[i]] and not self._fits(i, self._entry(i).get("momentum_buffer"))
            for i in active
        )

    def attach(self, active: list[int], has_momentum: list[bool]) -> bool:
        """Brings the table up to date, with new zero buffers where parameters that are updated have none.

        Returns:
            Whether any address is another.
        """
        updated = set(active)
        made: list[int] = []
        found: dict[int, Tensor] = {}
        for index, param in enumerate(self._plan.params):
            if not has_momentum[self._plan.group_of[index]]:
                continue
            buffer: Any = self._entry(index).get("momentum_buffer")
            dtype = self._plan.precisions[index].momentum_dtype
            if self._fits(index, buffer):
                found[index] = buffer
            elif index not in updated:
                continue
            elif buffer is None:
                found[index] = torch.zeros_like(param, dtype=dtype)
                made.append(index)
            elif buffer.dtype != dtype:
                found[index] = in_layout_of(buffer, param, dtype)
            else:
                buffer.data = in_layout_of(buffer, param, dtype)  # the same tensor, so that its flags stay true
                found[index] = buffer
        lost = [k for k, buffer in self._buffers.items() if self._entry(k).get("momentum_buffer") is not buffer]
        self._flags.change(STARTED, set_in=[], clear_in=lost)
        for index in lost:
            del self._buffers[index]
        # Before anybody finds a new buffer in the state and takes it for one that was brought.
        self._buffers.update((index, found[index]) for index in made)
        brought = [index for index, buffer in found.items() if buffer is not self._buffers.get(index)]
        self._flags.change(STARTED, set_in=brought, clear_in=[])  # by others, with what they have taken
        self._buffers.update(found)
        for index in updated.intersection(found):
            self._state[self._plan.params[index]]["momentum_buffer"] = found[index]
        before, self.table = self.table, array("Q", bytes(8 * len(self.table)))
        for index, buffer in found.items():
            self.table[index] = buffer.data_ptr()
        self.active, self.has_momentum = active, has_momentum
        return self.table != before

    def not_started(self) -> list[Tensor]:
        """Returns the parameters whose buffer in the state has not taken a gradient, as far as is known."""
        return [
            self._plan.params[index]
            for index, buffer in self._buffers.items()
            if not self._flags.known[index] & STARTED and self._entry(index).get("momentum_buffer") is buffer
        ]

    def forget(self) -> None:
        """Has the buffers attached anew: the parameters lie in memory in another way."""
        self.has_momentum = []

    def _entry(self, index: int) -> dict[str, Any]:
        return self._state.get(self._plan.params[index], {})

    def _fits(self, index: int, buffer: Any) -> bool:
        param = self._plan.params[index]
        return (
            isinstance(buffer, Tensor)
            and buffer.layout == torch.strided
            and buffer.device == param.device
            and buffer.dtype == self._plan.precisions[index].momentum_dtype
            and has_layout_of(buffer, param)
        )
