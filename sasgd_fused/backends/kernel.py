"""What the backends with kernels of their own share: tables of addresses, and norms carried from step to step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.momentum import MomentumTable, Owners, values_in_state
from sasgd_fused.backends.tables import GradientTable, WeightTable
from sasgd_fused.plan import PlannedBlock, State, StepPlan
from sasgd_fused.storage import Storage

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_version_of = attrgetter("_version")


class KernelBackend(Backend):
    """float32, bfloat16 and float16 parameters; arithmetic in float32, norms in float64.

    Subclasses run the step and the norm pass, and know where the norms are kept.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        super().__init__(plan, state)
        self._weights = WeightTable(plan)
        self._gradients = GradientTable(plan, DTYPE_CODES)
        self._momentum = MomentumTable(plan, state)
        self._block_params = [plan.params[planned.param] for planned in plan.blocks]
        self._block_of = {planned.param: b for b, planned in enumerate(plan.blocks)}
        self._version_sum = -1
        self._has_placed_masters = False
        # Views of one flat tensor share its counter: then a step raises the sum by more than one for each.
        storages = [param.untyped_storage().data_ptr() for param in plan.params if param.numel()]
        self._own_counters = len(set(storages)) == len(storages)
        self._freezes = plan.options.freezes_norms
        self._unmeasured = bytearray(b"\1" * len(plan.blocks))  # 1: the kernel's norm is not the one to be used
        self._warned = False
        self._kept: list[float] = []
        self._seen: list[float | None] | None = None
        self._owners = Owners(state, self._block_params)  # of these

    @classmethod
    def why_not_these(cls, dtypes: Collection[torch.dtype]) -> str | None:
        """Why the kernels cannot take parameters of these dtypes, or None if they can."""
        for dtype in dtypes:
            if dtype not in DTYPE_CODES:
                return f"it takes float32, bfloat16 and float16, not {dtype}"
        return None

    def prepare(self) -> bool:
        """Looks the tables over, and closer at what changed."""
        if not self._weights.is_current():
            if not self.plan.is_current() or self.plan.neighbours.share_otherwise():
                return False
            self._place_weights()
        if not self._gradients.gather():
            if not self.plan.is_current():
                return False
            self._gradients.bind()
        if self._weights.away:
            self._weights.check_presence(self._gradients.active)
        if self.plan.overlaid:
            self.distrust_overlaid()
        self._momentum.check()
        if self._masters and not self._masters.are_current():
            self.plan.check_masters(self.state)
        return True

    def release_gradients(self) -> None:
        """The table keeps their addresses."""
        self._gradients.release()

    def measure(self, blocks: Sequence[PlannedBlock]) -> list[float]:
        """The carried norms, after a norm pass over those among them that are not those of the weights."""
        asked = self._bring_up_to_date(blocks)
        norms = self._carried_norms()
        spoilt = [block for block in asked if not math.isfinite(norms[block]) and self._is_there(block)]
        if spoilt and not self._freezes:  # others may have put the weights right since, unseen
            self._measure_blocks(spoilt)
            norms = self._carried_norms()
        return [norms[block] for block in asked]

    def _bring_up_to_date(self, blocks: Sequence[PlannedBlock]) -> list[int]:
        """Has the carried norms of these blocks, whose numbers are returned, be those of their weights."""
        if not self._weights.is_current():
            self._place_weights()
        self._weights.fill_gapped()
        if self.plan.overlaid:
            self.distrust_overlaid()
        self.follow_parameters()
        self._find_stale()
        asked = [self._block_of[planned.param] for planned in blocks]
        chosen = (block for block in asked if self._freezes or self._unmeasured[block])
        self._measure_blocks(list(filter(self._is_there, chosen)))
        return asked

    def _is_there(self, block: int) -> bool:
        return self.plan.blocks[block].param not in self._weights.away

    def follow_parameters(self) -> None:
        """Also gives the kernel the masters that are others than before; their norms may be too."""
        if self._masters and (self._masters.follow() or not self._has_placed_masters):
            self._weights.place_masters(self._masters.items())
            self._has_placed_masters = True
            self._mark_unmeasured()

    def forget_norms(self) -> None:
        """A norm pass precedes the next step."""
        super().forget_norms()
        if self._freezes:
            self._take_kept_norms()
        else:
            self._mark_unmeasured()

    def drive(self) -> None:
        """Nothing that happens to the weights has these parts' norms taken instead."""
        super().drive()
        self._unmeasured = bytearray(len(self._unmeasured))

    def measure_all(self) -> Tensor:
        """By a norm pass, which gives the bits that a step would leave."""
        if self._freezes:
            return super().measure_all()
        if not self._weights.is_current():
            self._place_weights()
        self._weights.fill_gapped()
        self.follow_parameters()
        self._norm_pass(bytearray(b"\1" * len(self._unmeasured)))
        return self.local_norms()

    def _kernel_plan(self) -> dict[str, Any]:
        """What the kernels' plans are made from."""
        plan, options = self.plan, self.plan.options
        return {
            "tensors": [
                (param.numel(), group, DTYPE_CODES[torch.float32 if storage.has_master else param.dtype])
                for param, group, storage in zip(plan.params, plan.group_of, plan.storage, strict=True)
            ],
            "storage": [] if plan.is_ordinary else list(map(_stored_as, plan.params, plan.storage)),
            "blocks": [
                (b.param, b.scaled, float(b.block.rows), float(b.block.columns), b.backward_factor) for b in plan.blocks
            ],
            "eps": options.eps,
            "shape_decay": options.decay == "shape",
            "track_norms": not options.freezes_norms,
        }

    def _norm_pass(self, chosen: bytearray) -> None:
        """Takes the norms of the blocks whose byte is 1 from their weights."""
        raise NotImplementedError

    def _carried_norms(self) -> list[float]:
        """‖W_b‖²_{2,μ} of every block as the kernel has it."""
        raise NotImplementedError

    def _learn_norms(self) -> None:
        """Brings frozen norms into the state that so far only the device knows; may wait for it."""

    def _take_kept_norms(self) -> None:
        """Gives the kernel the frozen norms that the state holds."""
        raise NotImplementedError

    def _place_weights(self) -> None:
        self._has_placed_masters = False
        # Masters, gradients and momentum go by the weights' layouts, which may be others now (channels_last).
        self.compare_masters()
        self._gradients.invalidate()
        self._momentum.invalidate()
        moved = self._weights.rewrite()
        if not self._freezes and self._given is None:
            for index in moved:
                if index in self._block_of:
                    self._unmeasured[self._block_of[index]] = 1

    def _norms_in_state(self) -> list[float]:
        norms = map(self.frozen_row_norm_sq, self.plan.blocks)
        return [norm for norm in norms if norm is not None]

    def _find_stale(self) -> None:
        """Marks the norms if the version counters show that others have written any block.

        Counters only grow, so their sum changes whenever one of them does.
        """
        if self._given is not None:
            return
        if self._freezes:
            seen = values_in_state(self.state, "row_norm_sq", self._block_params)
            if seen != self._seen or not self._owners.hold():
                self._seen, self._owners = seen, Owners(self.state, self._block_params)
                if self._norms_in_state() != self._kept:  # somebody emptied or edited the state
                    self._learn_norms()
                    self._take_kept_norms()
            return
        version_sum = sum(map(_version_of, self._block_params))
        if version_sum != self._version_sum:
            self._version_sum = version_sum
            self._mark_unmeasured()

    def distrust_overlaid(self) -> None:
        """Also takes the norms of these anew."""
        super().distrust_overlaid()
        if not self._freezes and self._given is None:
            for index in self.plan.overlaid.intersection(self._block_of):
                self._unmeasured[self._block_of[index]] = 1

    def _mark_unmeasured(self) -> None:
        """Has all norms that track the weights be taken anew."""
        if not self._freezes and self._given is None:
            self._unmeasured = bytearray(b"\1" * len(self._unmeasured))

    def _warn_of_stale(self, blocks: int, stacklevel: int) -> None:
        if not blocks or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"the weights of {blocks} blocks were written between two steps in a way that no version counter shows "
            "(.data, a raw pointer), so that a step scaled their gradients by the norms of the weights before. Call "
            "refresh_norms() after such writes; layer_report() counts these steps",
            stacklevel=stacklevel + 1,
        )

    def _unmeasured_among(self, active: Collection[int]) -> list[int]:
        """The unmeasured blocks among the parameters that are updated."""
        if 1 not in self._unmeasured:
            return []
        updated = set(active)
        return [
            block
            for block, planned in enumerate(self.plan.blocks)
            if self._unmeasured[block] and planned.param in updated
        ]

    def _measure_blocks(self, chosen: list[int]) -> None:
        """A norm pass. A norm to be frozen counts as measured only once it is kept."""
        if not chosen:
            return
        flags = bytearray(len(self._unmeasured))
        for block in chosen:
            flags[block] = 1
        self._norm_pass(flags)
        if not self._freezes:
            for block in chosen:
                self._unmeasured[block] = 0

    def _mark_written(self, active: list[int]) -> None:
        """Bumps the version counters, as torch does for its own in-place operations."""
        params = self.plan.params
        if len(active) == len(params) and not self._weights.gapped and self._own_counters:
            torch.autograd.graph.increment_version(params)
            self._version_sum += len(self._block_params)
        else:
            torch.autograd.graph.increment_version([params[index] for index in active])
            self._version_sum = sum(map(_version_of, self._block_params))
        self.note_written()


def _stored_as(param: Tensor, storage: Storage) -> tuple[int, bool, bool, int]:
    """What the kernels are told of a tensor: its copy's dtype, float32 for none, and the rest as `Storage` has it."""
    copy_dtype = param.dtype if storage.has_master else torch.float32
    return DTYPE_CODES[copy_dtype], storage.has_small_momentum, storage.is_stochastic, storage.stream
