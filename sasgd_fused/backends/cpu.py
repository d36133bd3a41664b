"""The native backend on the CPU: one pass of a C++ kernel over all tensors."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from sasgd_fused.backends import extension
from sasgd_fused.backends.kernel import KernelBackend
from sasgd_fused.hyperparameters import GroupValues
from sasgd_fused.plan import State, StepPlan


class CpuBackend(KernelBackend):
    """Norms are carried in the extension's plan."""

    name = "native"

    def __init__(self, plan: StepPlan, state: State) -> None:
        super().__init__(plan, state)
        self._kernel = extension.core.CpuPlan(**self._kernel_plan())
        self._no_rounding_steps = array("q", bytes(8 * len(plan.params)))
        if self._freezes:
            self._take_kept_norms()

    def update(self, values: Sequence[GroupValues], grad_scale: float) -> None:
        """Runs the kernel: one pass, after a norm pass over blocks that others have written."""
        active = self._gradients.active
        self._momentum.attach(active, values)
        grads = self._gradients.write()
        if self._weights.gapped:
            self._weights.fill_gapped()
        self.follow_parameters()
        if self._masters and not all(map(math.isfinite, self._kernel.row_norm_sq)):
            self._masters.give_way()
        self._find_stale()
        self._measure_blocks(self._unmeasured_among(active))
        steps = self._kernel.steps
        try:
            stale = self._kernel.step(
                self._weights.table,
                self._gradients.table,
                self._momentum.table,
                self._weights.copies,
                self._gradients.codes,
                self._momentum.first,
                self._rounding_steps(),
                array("d", chain.from_iterable(values)),
                grad_scale,
                torch.get_num_threads(),
            )
        finally:
            if self._kernel.steps != steps:  # an interrupt comes when the kernel has run, but before this
                self._note_step(active, values)
        del grads  # the kernel had their addresses
        self._warn_of_stale(stale, stacklevel=7)

    def _note_step(self, active: list[int], values: Sequence[GroupValues]) -> None:
        self._momentum.launched()
        if self._weights.gapped:
            self._weights.empty_gapped(active)
        self._mark_written(active)
        self.note_rounding(active)
        if self._freezes:
            self._keep_norms(active, values)

    def stale_steps(self) -> list[int]:
        """As counted by the kernel, which compares each carried norm with that of the weights it reads."""
        return list(self._kernel.stale_steps)

    def local_norms(self) -> Tensor:
        """From the sums of squares that the kernel carries."""
        rows = [planned.block.rows for planned in self.plan.blocks]
        return torch.tensor(self._kernel.sum_squares, dtype=torch.float64) / torch.tensor(rows, dtype=torch.float64)

    def take_norms(self, norms: Tensor) -> None:
        """The kernel goes by them until it leaves others."""
        for block, norm in enumerate(norms.tolist()):
            self._kernel.set_row_norm_sq(block, norm)

    def _rounding_steps(self) -> array[int]:
        if not self._stochastic:
            return self._no_rounding_steps
        return array("q", map(self.rounding_step_of, range(len(self.plan.params))))

    def _norm_pass(self, chosen: bytearray) -> None:
        self._kernel.measure(self._weights.table, chosen, torch.get_num_threads())

    def _carried_norms(self) -> list[float]:
        return self._kernel.row_norm_sq

    def _take_kept_norms(self) -> None:
        for block, planned in enumerate(self.plan.blocks):
            frozen = self.frozen_row_norm_sq(planned)
            self._unmeasured[block] = frozen is None and planned.scaled
            if frozen is not None:
                self._kernel.set_row_norm_sq(block, frozen)
        self._kept = self._norms_in_state()

    def _keep_norms(self, active: list[int], values: Sequence[GroupValues]) -> None:
        unmeasured = self._unmeasured_among(active)
        if not unmeasured:
            return
        norms = self._kernel.row_norm_sq
        for block in unmeasured:
            planned = self.plan.blocks[block]
            self.keep_norm(planned, norms[block], values[self.plan.group_of[planned.param]].lr)
            self._unmeasured[block] = self.frozen_row_norm_sq(planned) is None
        self._kept, self._seen = self._norms_in_state(), None
