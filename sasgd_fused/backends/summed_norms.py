"""The norms of layers of which each rank holds a part: sums over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.norms import FrozenNorms
from sasgd_fused.backends.summed_gradient_norms import SummedGradientNorms
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
        self.gradients = SummedGradientNorms(plan, state)
        params = [plan.params[planned.param] for planned in plan.layers]
        # Weights and, in the relative scale, gradients share a transfer.
        self._sum = SumOverRanks(params * (2 if self.gradients else 1), plan.device)
        self._pending: Sequence[int] | None = None  # the parameters of a step whose gradients are being summed
        self._kept: list[float] = []  # what the inner backend goes by where norms are frozen
        # Of the weights whose norms are known; None: of none, as after an interrupt.
        self._versions: list[int] | None = None

    def before_step(self, active: Sequence[int], prepared: Any, numbers: StepNumbers) -> None:
        """Gives the inner backend the norms for a step.

        Args:
            active: the parameters that it updates.
            prepared: what the inner backend is to be given.
            numbers: of the step.
        """
        if self.frozen.is_on:
            self._give_frozen(numbers)
        else:
            self._inner.norms.give(self._current()[self._places])
        if self.gradients:
            norms = self.gradients.before_step(active, lambda: self._measure_gradients(prepared, numbers))
            self._inner.gradient_norms.give(norms[self._places])
        self._versions = None

    def after_step(self, active: Sequence[int]) -> None:
        """Begins to sum what a step has left; the norms are known when they are next asked for."""
        if self.frozen.is_on:
            return
        parts = self._inner.parts_of_norms(anew=False)
        self._start(parts, self._inner.gradient_norms.of_parts() if self.gradients else None)
        self._pending = active
        self._versions = self._present_versions()

    def sync_state(self) -> None:
        """Brings the gradients' norms into the state."""
        if self.gradients:
            self._take_gradients()
            self.gradients.learn()

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
        self._versions = None

    def _current(self) -> Tensor:
        """Returns the norms as the last step left them, or takes them anew if others have written since."""
        self._take_gradients()
        if self._versions != self._present_versions():
            self._start(self._inner.parts_of_norms(anew=True))
            self._versions = self._present_versions()
        sums = self._sum.wait()
        norms = sums[: len(self._plan.layers)]
        if not norms.isfinite().all():
            # Others may have put other weights in the place of those, unseen. Ranks that share a sum all see this.
            parts, chosen = (
                self._spread(self._inner.parts_of_norms(anew=True)),
                torch.zeros_like(sums, dtype=torch.bool),
            )
            chosen[: len(norms)] = ~norms.isfinite()
            self._sum.start_anew(torch.cat((parts, sums[len(norms) :])), chosen)
            norms = self._sum.wait()[: len(norms)]
        return norms

    def _start(self, of_weights: Tensor, of_gradients: Tensor | None = None) -> None:
        """Begins to sum the parts of this rank."""
        parts = [self._spread(of_weights)]
        if self.gradients:
            parts.append(torch.zeros_like(parts[0]) if of_gradients is None else self._spread(of_gradients))
        self._sum.start(torch.cat(parts))

    def _take_gradients(self) -> None:
        """Takes the sums of the last step's gradients, if they were not taken."""
        if self.gradients and self._pending is not None:
            self.gradients.after_step(self._pending, self._sum.wait()[len(self._plan.layers) :])
            self._pending = None

    def _measure_gradients(self, prepared: Any, numbers: StepNumbers) -> Tensor:
        """Returns q_b of a step that is to come, summed over the ranks."""
        parts = torch.tensor(self._inner.parts_of_gradients(prepared, numbers), dtype=torch.float64)
        self._start(torch.zeros_like(self._places, dtype=torch.float64), parts.to(self._plan.device))
        return self._sum.wait()[len(self._plan.layers) :]

    def _give_frozen(self, numbers: StepNumbers) -> None:
        values, layers, params = numbers.on_host(), self._plan.layers, self._plan.params
        # Whether or not they have gradients, which another rank need not have: all have to sum together.
        missing = [b for b, planned in enumerate(layers) if planned.scaled and self.frozen.get(planned) is None]
        norms = [self.frozen.get(planned) or 0.0 for planned in layers]
        if missing:
            self._versions = None
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

    def _present_versions(self) -> list[int]:
        # No sum of them: where parameters are exchanged, counters fall too.
        return [self._plan.params[planned.param]._version for planned in self._plan.layers]
