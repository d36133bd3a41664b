"""The host side of all kernels: on the CPU, in CUDA, in Triton."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from sasgd_fused.backends.addresses import GradientTable, GradientTables, Weights
from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.carried_norms import CarriedNorms
from sasgd_fused.backends.device_state import DeviceState
from sasgd_fused.backends.gradient_norms import CarriedGradientNorms
from sasgd_fused.backends.kernel import DTYPE_CODES, MakeKernel, SentNumbers
from sasgd_fused.backends.momentum import MomentumBuffers
from sasgd_fused.backends.updates import Updates
from sasgd_fused.backends.watch import Changes
from sasgd_fused.hyperparameters import StepNumbers
from sasgd_fused.plan import State, StepPlan


class Prepared(NamedTuple):
    """What `FusedBackend.step` needs to know of a step.

    Attributes:
        changes: what others have changed.
        grads: what the kernel is told of the gradients.
        tensors: what that points to, to be kept until the kernel is launched.
        only: the index of the one parameter that was looked at, if it is not all.
    """

    changes: Changes
    grads: GradientTable
    tensors: list[Tensor]
    only: int | None


class FusedBackend(Backend):
    """Has a kernel take the steps: float32, bfloat16 and float16; arithmetic in float32, norms in float64.

    A device alone knows whether a step was skipped, so norms, first updates and counts are kept there. The host learns
    of them later, without waiting for it in a step.

    Args:
        plan: the parameters of one device and what is fixed about them.
        state: the optimizer's.
        name: of the backend.
        make_kernel: makes the kernel for a plan and the memory that it carries from step to step.
    """

    def __init__(self, plan: StepPlan, state: State, name: str, make_kernel: MakeKernel) -> None:
        super().__init__(plan, state)
        self.name = name
        self.device_state = DeviceState(plan, state)
        self.weights = Weights(plan)
        self.gradient_norms = CarriedGradientNorms(plan, state, self.device_state)
        self.norms = CarriedNorms(plan, state, self.device_state, self._norm_pass, self._not_measurable)
        self.kernel = make_kernel(plan, self.device_state.carried)
        self._gradients = GradientTables(plan, DTYPE_CODES)
        self._momentum = MomentumBuffers(plan, state, self.device_state.flags)
        self._updates = Updates(
            plan, self.device_state, self.norms, self.gradient_norms, self.watch, self.kernel.is_on_host
        )
        self._carries_entries = bool(self.device_state.rounding_steps or self.gradient_norms)
        self._is_placed = False  # whether the kernel has the addresses
        self._may_be_replayed = False

    def prepare(self, only: int | None = None) -> Prepared | None:
        """Looks over all that the kernel knows by its address, and closer at what changed."""
        changes, gradients = self.watch.look(only), self._gradients
        if changes.moved:
            if not self.fits():
                return None
            self._find_weights()
        if any(changes) and changes.may_part_masters():
            self.masters.compare()
        seen = gradients.watch.look() if only is None else None
        if seen is None and not self.plan.is_current(only):
            return None
        if only is not None:
            table, tensors = gradients.bind_one(only)
        else:
            if seen is None:
                tensors = gradients.bind()
            else:
                tensors, places = seen
                if places is not gradients.watch.places or gradients.converted:
                    tensors = gradients.rewrite(tensors, places)
            table = gradients.table
        if self.weights.away:
            self.weights.check_presence(table.active)
        if changes.entries or table.active is not self._momentum.active:
            self.plan.check_state(self.state, table.active)
        return Prepared(changes, table, tensors, only)

    def step(self, prepared: Prepared, numbers: StepNumbers) -> None:
        """Runs the kernel, after a norm pass over layers that others have written."""
        changes, (active, grads, grad_dtypes), _, only = prepared
        kernel, momentum, values = self.kernel, self._momentum, numbers.values
        is_captured = False
        if kernel.is_on_host:
            if numbers.found_inf is not None and numbers.overflowed():
                return
            values = numbers.on_host() if numbers.device_lrs else values
            sent = SentNumbers({}, numbers.grad_scale, None)
        else:
            is_captured = self._begin(prepared, numbers.has_momentum)
            sent = self._send(numbers)
        is_same = active is momentum.active and numbers.has_momentum == momentum.has_momentum
        has_news = any(changes) or self.masters.must_compare
        if has_news or not (is_same or momentum.are_attached(active, numbers.has_momentum)):
            self._follow(changes, active, numbers.has_momentum, only)
        if not self._is_placed:
            self._place()
        if self.weights.strided:
            self.weights.load_strided()
        norms = self.device_state.carried.row_norm_sq
        if self.plan.has_masters and kernel.is_on_host and not math.isfinite(norms.sum()):  # a device is not waited for
            self.masters.give_way()
        values_of_groups = array("d", chain.from_iterable(values))
        measures_gradients = not kernel.is_on_host and self.gradient_norms.must_measure(active)
        flags, is_written = self.device_state.flags, False
        must_measure, steps, stale = bytearray(self.norms.must_measure), kernel.steps, None
        try:
            if 1 in must_measure:
                self.norms.measure_marked(active)
            # Noted before the kernel runs, since an interrupt may come between that and any line behind it.
            if not is_captured and flags.settled is not active:
                flags.begin_step()
            if self._carries_entries:
                is_written = self._begin_entries(active)
            stale = kernel.step(grads, grad_dtypes, values_of_groups, *sent, measures_gradients)
        finally:
            if kernel.steps != steps:  # after an interrupt too
                self._note_step(active, only, is_written)
                if not is_captured and flags.settled is not active:
                    self._updates.note(active, only, values, sent)
            if is_captured:  # nothing happens before the graph is replayed, if it is
                self.norms.must_measure = must_measure
                self.device_state.keep_for_graph(self.memory())
        if stale:
            self.norms.warn(stale, stacklevel=6)

    def sync_state(self) -> None:
        """Waits for the device, if it knows more: frozen norms, momentum buffers that have not started, counts."""
        is_noted = not self.watch.entries_changed()
        self._learn_norms()
        self.device_state.rounding_steps.learn(self._may_be_replayed)
        self.gradient_norms.learn(self._may_be_replayed)
        if is_noted:
            self.watch.note_entries()

    def not_started(self) -> list[Tensor]:
        """Returns those that `sync_state` found, or that the steps since then left."""
        return self._momentum.not_started()

    def report(self) -> tuple[list[float], list[int]]:
        """Measures the norms that are not those of the weights; waits for the device once."""
        self._follow_weights()
        norms, stale = self.norms.report()
        return norms, stale

    def parts_of_norms(self, anew: bool) -> Tensor:
        """Returns the sums that the kernel carries; `anew` takes them by a norm pass, which gives the same bits."""
        if self.norms.frozen.is_on:  # then the kernel takes no sums
            return super().parts_of_norms(anew)
        if anew:
            self._follow_weights()
            self.norms.measure_all()
        norms: Tensor = self.norms.of_parts()
        return norms

    def _gradients_in(self, prepared: Prepared) -> list[Tensor | None]:
        grads: list[Tensor | None] = [None] * len(self.plan.params)
        for index, grad in zip(prepared.grads.active, prepared.tensors, strict=True):
            grads[index] = grad
        return grads

    def memory(self) -> list[Tensor]:
        """Returns the device memory that the kernel uses besides parameters, gradients and state."""
        return [*self.device_state.carried, *self.kernel.memory(), *self.weights.strided.values()]

    def _find_weights(self) -> None:
        """Notes where the parameters lie. What has been laid out like them is laid out anew (channels_last)."""
        self.weights.rewrite()
        self._gradients.watch.forget()
        self._momentum.forget()
        self.masters.compare()
        self._is_placed = False
        self.norms.mark(self.watch.moved())
        self.norms.mark(self.watch.written())  # the sum of the counters need not show it: a parameter may be another
        self.watch.note_written()
        self.watch.note_places()

    def _follow_weights(self) -> None:
        """Has masters and norms follow what others have written, without a step."""
        changes = self.look()
        if changes.moved:
            self._find_weights()
        self.weights.load_strided()
        self._follow(changes)

    def _begin(self, prepared: Prepared, has_momentum: list[bool]) -> bool:
        """Prepares for work on a device; returns whether it is captured in a graph."""
        changes = prepared.changes
        stream = self.kernel.stream()
        if stream is not None:
            self.device_state.note_stream(stream, self.memory)
            if self.device_state.flags.have_arrived():
                self._updates.learn(is_noted=not changes.entries, only=prepared.only)
            return False
        if self._momentum.must_make(prepared.grads.active, has_momentum):
            raise _not_in_a_graph("momentum buffers cannot be made")
        if self.masters.must_compare or not (
            self.device_state.rounding_steps.are_sent() and self.gradient_norms.entry.are_sent()
        ):
            raise _not_in_a_graph("master weights cannot be made, nor counts and norms from the state be sent,")
        self._may_be_replayed = True
        return True

    def _follow(
        self,
        changes: Changes,
        active: list[int] | None = None,
        has_momentum: Sequence[bool] = (),
        only: int | None = None,
    ) -> None:
        """Has all that the kernel is told follow what others have changed.

        Args:
            changes: what that is.
            active: the parameters that a step updates, if one is taken.
            has_momentum: of each group, whether its momentum is not 0.
            only: the index of the one parameter that was looked at, if it is not all.
        """
        if self.masters.must_compare:
            self.norms.mark()
            self._is_placed = False
            self.masters.follow()
        if changes.written:
            self.norms.mark(self.watch.written())
            self.norms.mark(self.plan.overlaid)
            self.watch.note_written()
        self.norms.follow_state(self._learn_norms)
        if active is not None:
            if self._momentum.attach(active, list(has_momentum)):
                self._is_placed = False
            self.device_state.rounding_steps.send()
            self.gradient_norms.follow_state()
            self.watch.note_entries(only)

    def _place(self) -> None:
        if not self.kernel.is_on_host and self.kernel.stream() is None:
            raise _not_in_a_graph("tables of addresses cannot be sent to the device")
        self.weights.place_masters(dict(self.masters.items()))
        self.kernel.place(self.weights.table, self._momentum.table, self.weights.params)
        self._is_placed, self.device_state.flags.settled = True, None

    def _not_measurable(self) -> set[int]:
        """Returns the indices of the parameters of whose weights no norm can be taken now."""
        return self.weights.away | self.masters.misfits()

    def _norm_pass(self, chosen: bytearray) -> None:
        self.device_state.note_stream(self.kernel.stream(), self.memory)
        if not self._is_placed:
            self._place()
        self.kernel.measure(chosen)

    def _send(self, numbers: StepNumbers) -> SentNumbers:
        def sent(number: Tensor) -> Tensor:
            return number.detach().to(device=self.plan.device, dtype=torch.float32, non_blocking=True)

        scale, found_inf = (None if n is None else sent(n) for n in (numbers.grad_scale, numbers.found_inf))
        return SentNumbers({group: sent(lr) for group, lr in numbers.device_lrs.items()}, scale, found_inf)

    def _begin_entries(self, active: list[int]) -> bool:
        """Notes that the device may go on with counts and norms in the state; returns whether that was written."""
        is_written = self.device_state.rounding_steps.note_step(active)
        return self.gradient_norms.note_step(active) or is_written

    def _note_step(self, active: list[int], only: int | None, is_written: bool) -> None:
        if self.weights.strided:
            self.weights.store_strided(active)
        self.watch.bump(active, only, is_alone=not self.weights.strided)
        if self._carries_entries and self.kernel.is_on_host and self.device_state.rounding_steps:
            self.device_state.rounding_steps.learn(may_be_replayed=False)
            is_written = True
        if is_written:
            self.watch.note_entries(only)

    def _learn_norms(self) -> None:
        if self._is_placed and (self._may_be_replayed or not self.device_state.flags.are_known()):
            self.device_state.flags.ask(anew=True)
            self._updates.learn(is_noted=False)


def _not_in_a_graph(what: str) -> RuntimeError:
    return RuntimeError(f"CUDA graph: {what} in a graph; take a step before the capture, with the same parameters")
