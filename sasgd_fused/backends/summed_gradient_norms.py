"""The gradients' squared norms of layers of which each rank holds a part: sums over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from sasgd_fused.backends.device_state import CarriedEntry
from sasgd_fused.backends.gradient_norms import KEY
from sasgd_fused.factors import CARRIED_SHARE
from sasgd_fused.plan import State, StepPlan


class SummedGradientNorms:
    """Carries v_b of the relative scale for the whole layers, from sums that `SummedNorms` has taken over the ranks.

    Args:
        plan: whose layers.
        state: the optimizer's.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        self._plan = plan
        self._norms, self._sums = (torch.zeros(len(plan.layers), dtype=torch.float64, device=plan.device) for _ in "vq")
        self._scaled = {b: p.param for b, p in enumerate(plan.layers) if p.scaled and plan.options.is_relative}
        self._entry = CarriedEntry(KEY, state, {b: plan.params[k] for b, k in self._scaled.items()}, self._norms)
        self._are_known = False  # all norms that the last step needed

    def __bool__(self) -> bool:
        """Returns whether there are any."""
        return bool(self._scaled)

    def before_step(self, active: Collection[int], measure: Callable[[], Tensor]) -> Tensor:
        """Returns v_b of each layer, as a step uses it.

        Waits for the device as long as there are gradients whose norm was not known in the step before.

        Args:
            active: the parameters that the step updates.
            measure: returns q_b of the step, summed over the ranks. Not called if all are known.
        """
        if not self._entry.are_sent():
            self._entry.send()
            self._are_known = False
        if not self._are_known:
            missing = [b for b, norm in enumerate(self._norms.tolist()) if norm == 0 and self._scaled.get(b) in active]
            if missing:
                found = measure()[missing]
                self._norms[missing] = torch.where(found.isfinite(), found, 0.0)
            self._are_known = not missing
        return self._norms

    def after_step(self, active: Collection[int], measured: Tensor) -> None:
        """Takes q_b of a step that updated these parameters."""
        updated = torch.tensor([self._scaled.get(b) in active for b in range(len(self._norms))]).to(self._plan.device)
        before = self._norms
        carried = torch.where(before == 0, measured, CARRIED_SHARE * before + (1 - CARRIED_SHARE) * measured)
        before.copy_(torch.where(updated & measured.isfinite() & (measured != 0), carried, before))
        self._sums.copy_(torch.where(updated, measured, self._sums))
        self._entry.note_step(self._scaled)

    def learn(self) -> None:
        """Brings the norms into the state; waits for the device."""
        self._entry.learn(may_be_replayed=False)

    def report(self) -> Sequence[tuple[float, float]]:
        """Returns v_b and q_b of each layer, NaN where one is not known."""
        pairs = zip(self._norms.tolist(), self._sums.tolist(), strict=True)
        return [(norm or math.nan, measured or math.nan) for norm, measured in pairs]
