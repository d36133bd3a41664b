"""The counts of stochastically rounded steps on a device, which alone knows whether a step was skipped or replayed."""

from __future__ import annotations

import torch

from sasgd_fused.plan import State, StepPlan


class RoundingSteps:
    """Keeps ``rounding_step`` of each parameter on the device, and brings it into the state when asked to.

    Args:
        plan: whose parameters need not all be rounded stochastically.
        state: the optimizer's.

    Attributes:
        on_device: int64 for each parameter of the plan; a kernel counts them on.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        self._state = state
        params = zip(plan.params, plan.storage, strict=True)
        self._params = {k: p for k, (p, stored) in enumerate(params) if stored.is_stochastic and p.numel()}
        self.on_device = torch.zeros(len(plan.params), dtype=torch.int64, device=plan.device)
        self._seen: list[int | None] = [None] * len(self._params)  # what the state said when it was last looked at
        self._is_ahead = False

    def are_current(self) -> bool:
        """Whether the device goes by what the state says, as far as others have changed that."""
        return not self._params or self._in_state() == self._seen

    def send(self) -> None:
        """Has the device go by what others put into the state."""
        if self.are_current():
            return
        counts = self._in_state()
        for index, count, seen in zip(self._params, counts, self._seen, strict=True):
            if count != seen:
                self.on_device[index] = count or 0
        self._seen = counts

    def note_step(self) -> None:
        """Notes that the device may have counted on; by a count in the state it is seen if somebody empties that."""
        self._is_ahead = bool(self._params)
        if None in self._seen:
            for param in self._params.values():
                self._state[param].setdefault("rounding_step", 0)
            self._seen = self._in_state()

    def learn(self, may_be_replayed: bool) -> None:
        """Brings the device's counts into the state; waits for it.

        Args:
            may_be_replayed: a graph may have counted on unseen.
        """
        if not self._is_ahead and not (may_be_replayed and self._params):
            return
        self.send()
        counts = self.on_device.tolist()
        for index, param in self._params.items():
            if counts[index]:
                self._state[param]["rounding_step"] = counts[index]
            else:
                self._state[param].pop("rounding_step", None)
        self._seen, self._is_ahead = self._in_state(), False

    def _in_state(self) -> list[int | None]:
        return [
            self._state[param].get("rounding_step") if param in self._state else None for param in self._params.values()
        ]
