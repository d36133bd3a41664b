"""The norms of layers of which each rank holds a part: sums over the ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.norms import FrozenNorms
from sasgd_fused.hyperparameters import StepNumbers
from sasgd_fused.plan import State, StepPlan
from sasgd_fused.shards import SumOverRanks


class SummedNorms:
    """Sums what the backend of the local parts measures or carries, and gives it the norms of the whole weights.

    All ranks have to ask together. What decides whether something is summed, version counters of the parameters and
    the state, is the same on all of them.

    Args:
        plan: whose layers.
        state: the optimizer's.
        inner: runs the local parts, of those layers of which this rank holds anything.
        held: the places of these among the plan's layers.
    """

    def __init__(self, plan: StepPlan, state: State, inner: Backend, held: Sequence[int]) -> None:
        self.frozen = FrozenNorms(plan, state)
        self._plan = plan
        self._inner = inner
        self._held = held
        self._places = torch.tensor(held, dtype=torch.int64).to(plan.device)  # `held`, on the device
        self._sum = SumOverRanks([plan.params[planned.param] for planned in plan.layers], plan.device)
        self._kept: list[float] = []  # what the inner backend goes by where norms are frozen
        self._version_sum = -1  # of the weights whose norms are known; -1: of none, as after an interrupt

    def before_step(self, numbers: StepNumbers) -> None:
        """Gives the inner backend the norms for a step."""
        if self.frozen.is_on:
            self._give_frozen(numbers)
        else:
            self._inner.norms.give(self._current()[self._places])
        self._version_sum = -1

    def after_step(self) -> None:
        """Begins to sum what a step has left; the norms are known when they are next asked for."""
        if not self.frozen.is_on:
            self._sum.start(self._spread(self._inner.parts_of_norms(anew=False)))
            self._version_sum = self._sum_of_versions()

    def report(self) -> tuple[list[float], list[int]]:
        """Returns the norms of the whole weights, and the stale steps that this rank has seen in its parts."""
        kept = [self.frozen.get(planned) for planned in self._plan.layers]
        if None in kept:
            norms = zip(kept, self._current().tolist(), strict=True)
            kept = [measured if frozen is None else frozen for frozen, measured in norms]
        return [norm for norm in kept if norm is not None], self.stale_steps()

    def stale_steps(self) -> list[int]:
        """Returns those that this rank has seen in its parts."""
        stale = [0] * len(self._plan.layers)
        for place, steps in zip(self._held, self._inner.norms.stale_steps(), strict=True):
            stale[place] = steps
        return stale

    def warn_if_stale(self) -> None:
        """Warns as the backend of the local parts does."""
        if not self.frozen.is_on:
            self._inner.norms.warn_if_stale()

    def forget(self) -> None:
        """Has the norms taken and summed anew before the next step."""
        self.frozen.forget()
        self._inner.masters.compare()
        self._version_sum = -1

    def _current(self) -> Tensor:
        """Returns the norms as the last step left them, or takes them anew if others have written since."""
        if self._version_sum != self._sum_of_versions():
            self._sum.start(self._spread(self._inner.parts_of_norms(anew=True)))
            self._version_sum = self._sum_of_versions()
        norms = self._sum.wait()
        if not norms.isfinite().all():
            # Others may have put other weights in the place of those, unseen. Ranks that share a sum all see this.
            self._sum.start_anew(self._spread(self._inner.parts_of_norms(anew=True)), ~norms.isfinite())
            norms = self._sum.wait()
        return norms

    def _give_frozen(self, numbers: StepNumbers) -> None:
        values, layers, params = numbers.on_host(), self._plan.layers, self._plan.params
        # Whether or not they have gradients, which another rank need not have: all have to sum together.
        missing = [b for b, planned in enumerate(layers) if planned.scaled and self.frozen.get(planned) is None]
        norms = [self.frozen.get(planned) or 0.0 for planned in layers]
        if missing:
            self._version_sum = -1
            measured = self._current().tolist()
            for b in missing:
                norms[b] = measured[b]
                if params[layers[b].param].grad is not None:
                    self.frozen.keep(layers[b], measured[b], values[self._plan.group_of[layers[b].param]].lr != 0)
        if norms != self._kept:
            given = torch.tensor(norms, dtype=torch.float64, device=self._plan.device)
            self._inner.norms.give(given[self._places])
            self._kept = norms

    def _spread(self, of_parts: Tensor) -> Tensor:
        """Returns a number for every layer, 0 for those of which this rank holds nothing."""
        spread = torch.zeros(len(self._plan.layers), dtype=torch.float64, device=self._plan.device)
        spread[self._places] = of_parts
        return spread

    def _sum_of_versions(self) -> int:
        return sum(self._plan.params[planned.param]._version for planned in self._plan.layers)
