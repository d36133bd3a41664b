"""The native backend: one pass of a C++ kernel over all tensors, with the norms carried from step to step."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Collection, Sequence
from itertools import chain
from operator import attrgetter

import torch

from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.momentum import MomentumTable, values_in_state
from sasgd_fused.backends.tables import GradientTable, WeightTable
from sasgd_fused.options import GroupValues
from sasgd_fused.plan import PlannedBlock, State, StepPlan

try:
    # After torch, so that torch's OpenMP runtime is the process's only one.
    import sasgd_fused._C as _C
except ImportError as error:
    _C = None  # type: ignore[assignment]
    _import_error = str(error)

_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_version_of = attrgetter("_version")


class NativeBackend(Backend):
    """float32, bfloat16 and float16 parameters on the CPU; arithmetic in float32, norms in float64."""

    name = "native"

    def __init__(self, plan: StepPlan, state: State) -> None:
        super().__init__(plan, state)
        options = plan.options
        self._kernel = _C.CpuPlan(
            tensors=[
                (param.numel(), group, _DTYPE_CODES[param.dtype])
                for param, group in zip(plan.params, plan.group_of, strict=True)
            ],
            blocks=[
                (planned.param, planned.scaled, float(planned.block.rows), planned.columns) for planned in plan.blocks
            ],
            eps=options.eps,
            output_factor=plan.blocks[-1].backward_factor if plan.blocks else 1.0,
            shape_decay=options.decay == "shape",
            track_norms=not options.freezes_norms,
        )
        self._weights = WeightTable(plan)
        self._gradients = GradientTable(plan, _DTYPE_CODES)
        self._momentum = MomentumTable(plan, state)
        self._block_params = [plan.params[planned.param] for planned in plan.blocks]
        self._block_of = {planned.param: b for b, planned in enumerate(plan.blocks)}
        self._version_sum = -1
        # Views of one flat tensor share its counter: then a step raises the sum by more than one for each.
        storages = [param.untyped_storage().data_ptr() for param in plan.params if param.numel()]
        self._own_counters = len(set(storages)) == len(storages)
        self._freezes = options.freezes_norms
        self._unmeasured = bytearray(b"\1" * len(plan.blocks))  # 1: the kernel's norm is not the one to be used
        self._warned = False
        self._kept: list[float | None] = []
        if self._freezes:
            self._take_kept_norms()

    @classmethod
    def why_not_installed(cls) -> str | None:
        """Why the extension is absent, or None if it is there."""
        return None if _C else f"the compiled extension of sasgd_fused is not there ({_import_error})"

    @classmethod
    def why_not(cls, device: torch.device, dtypes: Collection[torch.dtype]) -> str | None:
        """Other devices, other dtypes, or no extension."""
        if device.type != "cpu":
            return f"it has no kernel for {device.type}, only for cpu"
        for dtype in dtypes:
            if dtype not in _DTYPE_CODES:
                return f"it takes float32, bfloat16 and float16, not {dtype}"
        return cls.why_not_installed()

    def prepare(self) -> bool:
        """Looks the tables over, and closer at what changed."""
        if not self._weights.is_current():
            if not self.plan.is_current():
                return False
            self._place_weights()
        if not self._gradients.gather():
            if not self.plan.is_current():
                return False
            self._gradients.bind()
        self._momentum.check()
        return True

    def update(self, values: Sequence[GroupValues], grad_scale: float) -> None:
        """Runs the kernel: one pass, after a norm pass over blocks that others have written."""
        active = self._gradients.active
        first = self._momentum.attach(active, values)
        grads = self._gradients.write()
        if self._weights.gapped:
            self._weights.fill_gapped()
        self._find_stale()
        self._measure_for_step(active)
        stale = self._kernel.step(
            self._weights.table,
            self._gradients.table,
            self._momentum.table,
            self._gradients.codes,
            first,
            array("d", chain.from_iterable(values)),
            grad_scale,
            torch.get_num_threads(),
        )
        del grads  # the kernel had their addresses
        if self._weights.gapped:
            self._weights.empty_gapped(active)
        self._mark_written(active)
        if self._freezes:
            self._keep_norms(active, values)
        elif stale and not self._warned:
            self._warned = True
            warnings.warn(
                f"the weights of {stale} blocks were written between two steps in a way that no version counter "
                "shows (.data, a raw pointer), so that this step scaled their gradients by the norms of the weights "
                "before. Call refresh_norms() after such writes; layer_report() counts these steps",
                stacklevel=5,
            )

    def release_gradients(self) -> None:
        """The table keeps their addresses."""
        self._gradients.release()

    def measure(self, blocks: Sequence[PlannedBlock]) -> list[float]:
        """The carried norms, after a norm pass over those among them that are not those of the weights."""
        if not self._weights.is_current():
            self._place_weights()
        self._weights.fill_gapped()
        self._find_stale()
        asked = [self._block_of[planned.param] for planned in blocks]
        self._measure_blocks([block for block in asked if self._freezes or self._unmeasured[block]])
        norms = self._kernel.row_norm_sq
        return [norms[block] for block in asked]

    def stale_steps(self) -> list[int]:
        """As counted by the kernel, which compares each carried norm with that of the weights it reads."""
        return list(self._kernel.stale_steps)

    def forget_norms(self) -> None:
        """A norm pass precedes the next step."""
        super().forget_norms()
        if self._freezes:
            self._take_kept_norms()
        else:
            self._unmeasured = bytearray(b"\1" * len(self._unmeasured))

    def _place_weights(self) -> None:
        moved = self._weights.rewrite()
        # Gradients and momentum go by the weights' layouts, which may be others now (channels_last).
        self._gradients.invalidate()
        self._momentum.invalidate()
        if not self._freezes:
            for index in moved:
                if index in self._block_of:
                    self._unmeasured[self._block_of[index]] = 1

    def _take_kept_norms(self) -> None:
        """Gives the kernel the frozen norms that the state holds."""
        for block, planned in enumerate(self.plan.blocks):
            frozen = self.frozen_row_norm_sq(planned)
            self._unmeasured[block] = frozen is None and planned.scaled
            if frozen is not None:
                self._kernel.set_row_norm_sq(block, frozen)
        self._kept = self._norms_in_state()

    def _norms_in_state(self) -> list[float | None]:
        return values_in_state(self.state, "row_norm_sq")

    def _find_stale(self) -> None:
        """Marks the norms if the version counters show that others have written any block.

        Counters only grow, so their sum changes whenever one of them does.
        """
        if self._freezes:
            if self._norms_in_state() != self._kept:  # somebody emptied or edited the state
                self._take_kept_norms()
            return
        version_sum = sum(map(_version_of, self._block_params))
        if version_sum != self._version_sum:
            self._version_sum = version_sum
            self._unmeasured = bytearray(b"\1" * len(self._unmeasured))

    def _measure_for_step(self, active: list[int]) -> None:
        if 1 in self._unmeasured:
            updated = set(active)
            self._measure_blocks(
                [
                    block
                    for block, planned in enumerate(self.plan.blocks)
                    if self._unmeasured[block] and planned.param in updated
                ]
            )

    def _measure_blocks(self, chosen: list[int]) -> None:
        """A norm pass. A norm to be frozen counts as measured only once it is kept."""
        if not chosen:
            return
        flags = bytearray(len(self._unmeasured))
        for block in chosen:
            flags[block] = 1
            if not self._freezes:
                self._unmeasured[block] = 0
        self._kernel.measure(self._weights.table, flags, torch.get_num_threads())

    def _mark_written(self, active: list[int]) -> None:
        """Bumps the version counters, as torch does for its own in-place operations."""
        params = self.plan.params
        if len(active) == len(params) and not self._weights.gapped and self._own_counters:
            torch.autograd.graph.increment_version(params)
            self._version_sum += len(self._block_params)
        else:
            torch.autograd.graph.increment_version([params[index] for index in active])
            self._version_sum = sum(map(_version_of, self._block_params))

    def _keep_norms(self, active: list[int], values: Sequence[GroupValues]) -> None:
        if 1 not in self._unmeasured:
            return
        norms = self._kernel.row_norm_sq
        updated = set(active)
        for block, planned in enumerate(self.plan.blocks):
            lr = values[self.plan.group_of[planned.param]].lr
            if self._unmeasured[block] and planned.param in updated and lr != 0:
                self.keep_norm(planned, norms[block], lr)
                self._unmeasured[block] = 0
        self._kept = self._norms_in_state()
