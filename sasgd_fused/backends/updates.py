"""What updates may have set on the device, and what the device tells of it later."""

from __future__ import annotations

from collections.abc import Sequence

from sasgd_fused.backends.carried_norms import CarriedNorms
from sasgd_fused.backends.device_state import STARTED, DeviceState
from sasgd_fused.backends.gradient_norms import CarriedGradientNorms
from sasgd_fused.backends.kernel import SentNumbers
from sasgd_fused.backends.watch import Watch
from sasgd_fused.hyperparameters import GroupValues
from sasgd_fused.plan import StepPlan


class Updates:
    """Follows the flags that a kernel sets: the host knows some for certain, and is told of the others.

    Args:
        plan: what is updated.
        device: where the kernel keeps the flags.
        norms: of the weights.
        gradient_norms: of the gradients.
        watch: what notes the state when this has written into it.
        is_on_host: whether the kernel runs on the host.
    """

    def __init__(
        self,
        plan: StepPlan,
        device: DeviceState,
        norms: CarriedNorms,
        gradient_norms: CarriedGradientNorms,
        watch: Watch,
        is_on_host: bool,
    ) -> None:
        self._plan = plan
        self._flags = device.flags
        self._norms = norms
        self._gradient_norms = gradient_norms
        self._watch = watch
        self._is_on_host = is_on_host

    def note(self, active: list[int], only: int | None, values: Sequence[GroupValues], sent: SentNumbers) -> None:
        """Notes which flags a step sets; where that depends on the device, has it tell.

        Args:
            active: the parameters that it updated.
            only: the index of the one parameter that was looked at, if it is not all.
            values: hyperparameters of every group.
            sent: what the device was sent of the step's numbers.
        """
        flags, is_certain, is_final = self._flags, sent.found_inf is None, True
        for index in active:
            group = self._plan.group_of[index]
            sets = STARTED if values[group].momentum != 0 else 0
            if is_certain:
                flags.known[index] |= sets
            kept, is_last = self._norms.note_update(index, values[group].lr != 0 or group in sent.lrs, is_certain)
            if not self._is_on_host and (unknown := self._gradient_norms.flag_of(index)):
                kept, is_last = kept | unknown, False
            is_final = is_final and is_last
            if self._plan.params[index].numel():  # empty tensors have no part in a step
                flags.note_possible(index, sets | kept)
        flags.end_step()
        if flags.are_known():
            flags.settled = active if is_final else None
        flags.ask()
        if flags.have_arrived():
            self.learn(is_noted=True, only=only)
        elif not is_final:  # a norm may be marked as missing in the state
            self._watch.note_entries(only)

    def learn(self, is_noted: bool, only: int | None = None) -> None:
        """Takes in what the device told.

        Args:
            is_noted: whether the state is as it was noted, so that what this adds can be noted too.
            only: the index of the one parameter of which that is known, if it is not all.
        """
        flags, norms = self._flags.take()
        self._norms.learn(flags, norms)
        has_started = any(flag & STARTED for flag in flags)
        known = self._flags.known
        for index, flag in enumerate(flags):
            is_empty = not self._plan.params[index].numel()  # taken with the others
            known[index] |= STARTED if is_empty and has_started else flag
        self._flags.end_taking()
        if is_noted and self._norms.frozen.is_on:
            self._watch.note_entries(only)
