"""Master weights: the float32 copies of 16-bit parameters, which are updated in their place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sasgd_fused.layout import has_layout_of, in_layout_of
from sasgd_fused.memory import has_values, is_away
from sasgd_fused.plan import State, StepPlan


class MasterWeights:
    """Keeps ``master_weight`` in the state, in the parameters' layouts, and in step with the parameters.

    Whatever is written into a parameter by others, such as a checkpoint of the model, is taken over: a master holds
    where its parameter is what the master rounds to, and else gives way.

    Args:
        plan: whose parameters need not all have masters.
        state: the optimizer's.

    Attributes:
        must_compare: whether masters and parameters are to be compared before the next step.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        self._state = state
        self._params = {k: plan.params[k] for k, precision in enumerate(plan.precisions) if precision.has_master}
        self.must_compare = bool(self._params)

    def __bool__(self) -> bool:
        return bool(self._params)

    @torch.no_grad()
    def follow(self) -> None:
        """If `must_compare`: makes masters where there are none, takes over what others wrote into the parameters."""
        if not self.must_compare:
            return
        for param in self._params.values():
            state = self._state[param]
            master = state.get("master_weight")
            if param.grad is None and (is_away(param) or not _may_be_master(master, param)):
                continue  # the memory was taken away for a time, or nobody needs the master yet
            if master is None:
                state["master_weight"] = in_layout_of(param, param, torch.float32)
                continue
            if master.dtype != torch.float32 or not has_layout_of(master, param):
                master = state["master_weight"] = in_layout_of(master, param, torch.float32)
            master.copy_(torch.where(param == master.to(param.dtype), master, param))
        self.must_compare = False

    @torch.no_grad()
    def give_way(self) -> bool:
        """Has masters that are not finite take over parameters that are: others put these right, maybe unseen.

        Returns:
            Whether any did.
        """
        given = False
        for index, master in self.items():
            param = self._params[index]
            if has_values(param) and not master.isfinite().all() and param.isfinite().all():
                master.copy_(param)
                given = True
        return given

    def compare(self) -> None:
        """Has masters and parameters compared before the next step, because others may have written any of them."""
        self.must_compare = bool(self._params)

    def items(self) -> Iterator[tuple[int, Tensor]]:
        """Yields the index of each parameter that has a master, and the master, if that fits."""
        for index, param in self._params.items():
            master = self._state[param].get("master_weight") if param in self._state else None
            if master is not None and _may_be_master(master, param):
                yield index, master

    def misfits(self) -> set[int]:
        """Returns the indices of the parameters that have no master, or one that does not fit."""
        return set(self._params).difference(index for index, _ in self.items())


def _may_be_master(master: Tensor | None, param: Tensor) -> bool:
    """Returns whether a parameter's master can be, or be made from, what the state has."""
    return master is None or (master.layout == torch.strided and master.shape == param.shape)
