"""The norms of a plan's layers: frozen in the state, or measured at every step.

Those that a kernel carries from step to step are in carried_norms.py, sums over ranks in summed_norms.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sasgd_fused.plan import PlannedLayer, State, StepPlan


class FrozenNorms:
    """The norms that ``norms="freeze"`` keeps in the state as ``row_norm_sq``: those of each layer's first update.

    Args:
        plan: whose layers.
        state: the optimizer's.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        self.is_on = plan.options.freezes_norms
        self._plan = plan
        self._state = state

    def get(self, planned: PlannedLayer) -> float | None:
        """Returns the norm of a layer, or None if norms track the weights or it was not taken yet."""
        if not self.is_on:
            return None
        norm = self._state.get(self._plan.params[planned.param], {}).get("row_norm_sq")
        return norm if norm is not None and math.isfinite(norm) else None

    def keep(self, planned: PlannedLayer, norm: float, is_update: bool, entry: dict[str, Any] | None = None) -> None:
        """Keeps the norm of a layer at its first update; a step with lr = 0 is no update.

        Such a step leaves a NaN, which is none: by it torch.distributed.checkpoint learns that there is a norm to load.
        A norm that is not finite is none either: whoever puts other weights in the place of those goes on.

        Args:
            planned: the layer.
            norm: ‖W_b‖²_{2,μ}.
            is_update: whether the learning rate of the step is not 0.
            entry: where to put it, by default the parameter's entry in the state. Somebody may have moved that.
        """
        if not self.is_on:
            return
        entry = self._state[self._plan.params[planned.param]] if entry is None else entry
        if (kept := entry.get("row_norm_sq")) is None or not math.isfinite(kept):
            entry["row_norm_sq"] = norm if is_update else math.nan

    def forget(self) -> None:
        """Removes all norms from the state, if norms freeze."""
        for planned in self._plan.layers if self.is_on else ():
            entry = self._state.get(self._plan.params[planned.param])
            if entry:
                entry.pop("row_norm_sq", None)

    def before_updates(self) -> dict[Tensor, dict[str, Any]]:
        """Returns what the entry of each scaled layer's parameter has before its first update."""
        scaled = [planned for planned in self._plan.layers if planned.scaled and self.is_on]
        return {self._plan.params[planned.param]: {"row_norm_sq": math.nan} for planned in scaled}


class Norms:
    """Norms that are measured whenever a step asks for them.

    Args:
        plan: whose layers.
        state: the optimizer's.
        measure: returns ‖W_b‖²_{2,μ} of the present weights of layers.
    """

    def __init__(self, plan: StepPlan, state: State, measure: Callable[[Sequence[PlannedLayer]], list[float]]) -> None:
        self.frozen = FrozenNorms(plan, state)
        self._plan = plan
        self._measure = measure
        self._given: dict[PlannedLayer, float] | None = None

    def of(self, layers: Sequence[PlannedLayer]) -> list[float]:
        """Returns the norm that each layer's next step uses: given, frozen, or that of its present weights."""
        if self._given is not None:
            return [self._given[planned] for planned in layers]
        norms = [self.frozen.get(planned) for planned in layers]
        missing = [planned for planned, norm in zip(layers, norms, strict=True) if norm is None]
        measured = iter(self._measure(missing))
        return [next(measured) if norm is None else norm for norm in norms]

    def keep(self, planned: PlannedLayer, norm: float, is_update: bool) -> None:
        """Keeps the norm that a step has used, if norms freeze and it is not given."""
        if self._given is None:
            self.frozen.keep(planned, norm, is_update)

    def give(self, norms: Tensor) -> None:
        """Has the next steps use these norms, one for each layer: the weights are parts of larger ones."""
        self._given = dict(zip(self._plan.layers, norms.tolist(), strict=True))

    def report(self) -> tuple[list[float], list[int]]:
        """Returns the norm of every layer, as the next step will use it, and how many steps used stale ones."""
        return self.of(self._plan.layers), self.stale_steps()

    def stale_steps(self) -> list[int]:
        """Returns how many steps of each layer used the norm of weights that had been written unseen."""
        return [0] * len(self._plan.layers)

    def warn_if_stale(self) -> None:
        """Warns, once, of stale steps that only the device knows of; may wait for it."""

    def forget(self) -> None:
        """Has the norms taken anew from the weights at the next step."""
        self.frozen.forget()
