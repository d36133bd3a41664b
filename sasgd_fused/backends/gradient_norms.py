"""The gradients' squared norms that the relative scale divides by: carried from step to step in the state.

Sums over ranks are in summed_norms.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.device_state import GRADIENT_KNOWN, CarriedEntry, DeviceState, Readback
from sasgd_fused.factors import next_gradient_norm_sq
from sasgd_fused.plan import PlannedLayer, State, StepPlan

KEY = "gradient_norm_sq"


def norm_in(entry: Mapping[str, Any]) -> float:
    """Returns v_b as a parameter's state has it; 0 if it is not known."""
    norm = entry.get(KEY, 0.0)
    return float(norm) if norm > 0 and math.isfinite(norm) else 0.0


class GradientNorms:
    """Keeps v_b of each scaled layer in the state as ``gradient_norm_sq``, and q_b of the last step here.

    Args:
        plan: whose layers.
        state: the optimizer's.

    Attributes:
        measured: q_b by the index of the parameter, of the last step that updated it.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        self.measured: dict[int, float] = {}
        self._now: Mapping[int, float] = {}
        self._plan = plan
        self._state = state
        self._given: dict[int, float] | None = None

    def of(self, planned: PlannedLayer) -> float:
        """Returns v_b, or 0 if it is not known."""
        if self._given is not None:
            return self._given[planned.param]
        return norm_in(self._state.get(self._plan.params[planned.param], {}))

    def note(self, measured: Mapping[int, float]) -> None:
        """Takes q_b of the parameters that a step updates."""
        self._now = measured
        self.measured.update(measured)

    def before_step(self, planned: PlannedLayer) -> float:
        """Returns the v_b that a step uses: q_b itself where it was not known."""
        measured = self.measured[planned.param]
        return self.of(planned) or (measured if math.isfinite(measured) else 0.0)

    def carry(self) -> None:
        """Takes what the last step measured into the state."""
        if self._given is not None:
            return
        for planned in self._plan.layers:
            if planned.param in self._now:
                entry = self._state[self._plan.params[planned.param]]
                entry[KEY] = next_gradient_norm_sq(self.of(planned), self.measured[planned.param])

    def give(self, norms: Tensor) -> None:
        """Has the next steps use these v_b, one for each layer: the gradients are parts of larger ones."""
        params = (planned.param for planned in self._plan.layers)
        self._given = dict(zip(params, norms.tolist(), strict=True))

    def of_parts(self) -> Tensor:
        """Returns q_b of each layer's last step, 0 before that."""
        measured = [self.measured.get(planned.param, 0.0) for planned in self._plan.layers]
        return torch.tensor(measured, dtype=torch.float64, device=self._plan.device)

    def report(self) -> Sequence[tuple[float, float]]:
        """Returns v_b and q_b of each layer, NaN where one is not known."""
        return [
            (self.of(planned) or math.nan, self.measured.get(planned.param, math.nan)) for planned in self._plan.layers
        ]


class CarriedGradientNorms:
    """The same where a kernel carries them: in the memory of its device.

    Args:
        plan: whose layers.
        state: the optimizer's.
        device: what the kernel carries.
    """

    def __init__(self, plan: StepPlan, state: State, device: DeviceState) -> None:
        scaled = [planned.param for planned in plan.layers if planned.scaled and plan.options.is_relative]
        self.entry = CarriedEntry(
            KEY, state, {index: plan.params[index] for index in scaled}, device.carried.gradient_norm_sq
        )
        self._plan = plan
        self._state = state
        self._device = device
        self._scaled = frozenset(scaled)
        self._is_given = False

    def __bool__(self) -> bool:
        """Returns whether there are any."""
        return bool(self._scaled)

    def follow_state(self) -> None:
        """Has the kernel go by the norms in the state, as far as others have changed them."""
        if self._is_given or self.entry.are_sent():
            return
        self.entry.send()
        params, state = self._plan.params, self._state
        known = [index for index in self._scaled if norm_in(state.get(params[index], {}))]
        self._device.flags.change(GRADIENT_KNOWN, set_in=known, clear_in=self._scaled.difference(known))

    def note_step(self, active: Collection[int]) -> bool:
        """Notes that the kernel may have gone on; returns whether the state was written."""
        return not self._is_given and self.entry.note_step(active)

    def flag_of(self, index: int) -> int:
        """Returns the flag that a step may set of a parameter, if it is not set for certain."""
        if index not in self._scaled or self._is_given:
            return 0
        return GRADIENT_KNOWN & ~self._device.flags.known[index]

    def must_measure(self, active: Collection[int]) -> bool:
        """Returns whether any of these gradients may have no norm."""
        return bool(self._scaled) and any(map(self.flag_of, active))

    def learn(self, may_be_replayed: bool) -> None:
        """Brings the norms into the state; waits for the device."""
        if not self._is_given:
            self.entry.learn(may_be_replayed)

    def give(self, norms: Tensor) -> None:
        """Has the next steps use these v_b, one for each layer: the gradients are parts of larger ones."""
        self._is_given = True
        self._device.carried.gradient_norm_sq[self._places()] = norms

    def of_parts(self) -> Tensor:
        """Returns q_b of the last step for each layer; does not wait for the device."""
        return self._device.carried.gradient_sums[self._places()]

    def report(self) -> Sequence[tuple[float, float]]:
        """Returns v_b and q_b of each layer, NaN where one is not known; waits for the device."""
        carried, places = self._device.carried, [planned.param for planned in self._plan.layers]
        norms, sums = (copy.tolist() for copy in Readback((carried.gradient_norm_sq, carried.gradient_sums)).wait())
        return [(norms[k] or math.nan, sums[k] or math.nan) for k in places]

    def _places(self) -> Tensor:
        places = torch.tensor([planned.param for planned in self._plan.layers], dtype=torch.int64)
        return places.to(self._plan.device, non_blocking=True)
