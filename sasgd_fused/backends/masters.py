"""Master weights: the float32 copies of 16-bit parameters, which are updated in their place."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.layout import has_layout_of, in_layout_of
from sasgd_fused.memory import addresses_of, has_values, is_away
from sasgd_fused.plan import State, StepPlan

_version_of = attrgetter("_version")


class MasterWeights:
    """Keeps ``master_weight`` in the state, in the parameters' layouts, and in step with the parameters.

    Whatever is written into a parameter by others, such as a checkpoint of the model, is taken over: a master holds
    where its parameter is what the master rounds to, and else gives way.

    Args:
        plan: some of whose parameters have masters.
        state: the optimizer's.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        self._state = state
        self._params = {k: plan.params[k] for k, storage in enumerate(plan.storage) if storage.has_master}
        self._versions: list[int] = []
        self._known: list[Tensor | None] = []  # None only where the memory of both is away
        self._addresses: list[int] = []

    def are_current(self) -> bool:
        """Whether masters and parameters are those that `follow` or `note_written` saw last."""
        return (
            list(map(_version_of, self._params.values())) == self._versions
            and all(map(is_, self._in_state(), self._known))
            and self._places() == self._addresses
        )

    @torch.no_grad()
    def follow(self) -> bool:
        """Makes masters where there are none, and takes over what others wrote.

        Returns:
            Whether anything had to be done.
        """
        if self.are_current():
            return False
        for param in self._params.values():
            state = self._state[param]
            master = state.get("master_weight")
            if param.grad is None and (is_away(param) or (master is not None and master.shape != param.shape)):
                continue  # the memory was taken away for a time
            if master is None:
                state["master_weight"] = in_layout_of(param, param, torch.float32)
                continue
            if master.dtype != torch.float32 or not has_layout_of(master, param):
                master = state["master_weight"] = in_layout_of(master, param, torch.float32)
            master.copy_(torch.where(param == master.to(param.dtype), master, param))
        self._known = list(self._in_state())
        self._addresses = self._places()
        self.note_written()
        return True

    @torch.no_grad()
    def give_way(self) -> bool:
        """Has masters that are not finite take over parameters that are: others put these right, maybe unseen.

        Returns:
            Whether any did.
        """
        given = False
        for param, master in zip(self._params.values(), self._known, strict=True):
            if master is None or not has_values(param):
                continue
            if not master.isfinite().all() and param.isfinite().all():
                master.copy_(param)
                given = True
        return given

    def note_written(self) -> None:
        """Notes that the parameters are what their masters round to."""
        self._versions = list(map(_version_of, self._params.values()))

    def forget(self) -> None:
        """Has the masters compared with their parameters, which may have been written unseen."""
        self._versions = []

    def items(self) -> Iterator[tuple[int, Tensor]]:
        """The index of each parameter that has a master, and the master, as `follow` left them."""
        return ((index, master) for index, master in zip(self._params, self._known, strict=True) if master is not None)

    def _places(self) -> list[int]:
        """Of parameters too: ``param.data = ...`` brings other values that no version counter shows."""
        return addresses_of([*self._params.values(), *(master for master in self._known if master is not None)])

    def _in_state(self) -> Iterator[Any]:
        return (
            self._state[param].get("master_weight") if param in self._state else None for param in self._params.values()
        )
