"""Steps over DTensors (FSDP2, tensor parallelism): each rank updates its parts, and norms are sums over the ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.base import Backend
from sasgd_fused.hyperparameters import StepNumbers
from sasgd_fused.plan import State, StepPlan
from sasgd_fused.shards import SumOverRanks, is_set_anywhere, is_sharded, local_as, local_of, part_of, whole_of
from sasgd_fused.storage import split_stream

MakeBackend = Callable[[StepPlan, State], Backend]


class ShardedBackend(Backend):
    """Runs a backend for plain tensors on the local parts, and gives it the norms of the whole weights.

    All ranks have to take the same steps. What decides whether something is summed over the ranks, version counters
    of the parameters and the state, is the same on all of them.

    Args:
        plan: the parameters of one device, DTensors and others.
        state: the optimizer's state; momentum buffers and masters in it are DTensors like their parameters.
        make: makes the backend that runs on the local parts.
    """

    def __init__(self, plan: StepPlan, state: State, make: MakeBackend) -> None:
        super().__init__(plan, state)
        self._locals = [local_of(param) for param in plan.params]
        self._local_state: State = defaultdict(dict)
        self._held = [b for b, planned in enumerate(plan.blocks) if self._locals[planned.param].numel()]
        self._places = torch.tensor(self._held, dtype=torch.int64).to(plan.device)  # the same
        self._inner = make(self._local_plan(), self._local_state)
        self._inner.drive()
        self._written: list[int] = []  # versions of the parameters after the last step
        self._sum = SumOverRanks([plan.params[planned.param] for planned in plan.blocks], plan.device)
        self._kept: list[float] = []  # what the inner backend goes by where norms are frozen
        self._version_sum = -1  # of the weights whose norms are known
        self.name = self._inner.name

    def is_current(self) -> bool:
        """Also whether the local parts are where they were."""
        parts = zip(self.plan.params, self._locals, strict=True)
        return self.plan.is_current() and all(local_of(param) is local for param, local in parts)

    def prepare(self) -> bool:
        """Lends the backend this step's gradients and the state, in their local parts."""
        if not self.is_current():
            return False
        self.plan.check_momentum(self.state)
        self.plan.check_masters(self.state)
        for param, local, name in zip(self.plan.params, self._locals, self.plan.names, strict=True):
            if is_sharded(param):
                local.grad = self._local_gradient(param, name)
        self._lend_state()
        if self.plan.has_masters and self._versions() != self._written:
            self._inner.compare_masters()  # the counters of the local parts do not show it
        return self._inner.prepare()

    def step(self, numbers: StepNumbers) -> None:
        """Updates the local parts; the sums of squares of what they are then are on their way when this returns."""
        if numbers.found_inf is not None:
            # The scaler looks at the first gradient's ranks alone, and all must do the same.
            if is_set_anywhere(numbers.found_inf, self.plan.params):
                return
            numbers = replace(numbers, found_inf=None)
        if self.plan.options.freezes_norms:
            self._give_frozen_norms(numbers)
        else:
            self._inner.take_norms(self._current_norms()[self._places])
        self._version_sum = -1
        try:
            self._inner.step(numbers)
        finally:  # after an interrupt too: the local parts may be written
            self._take_state_back()
            active = [param for param in self.plan.params if param.grad is not None]
            torch.autograd.graph.increment_version([param for param in active if is_sharded(param)])
            self._written = self._versions()
        if not self.plan.options.freezes_norms:
            self._sum.start(self._spread(self._inner.local_norms()))
            self._version_sum = self._sum_of_versions()

    def release_gradients(self) -> None:
        """Leaves them to the parameters alone."""
        self._inner.release_gradients()
        for param, local in zip(self.plan.params, self._locals, strict=True):
            if is_sharded(param):
                local.grad = None

    def settle(self) -> None:
        """As the backend of the local parts does."""
        self._inner.settle()
        self._take_state_back()

    def warn_if_stale(self) -> None:
        """As the backend of the local parts does."""
        if not self.plan.options.freezes_norms:
            self._inner.warn_if_stale()

    def unstarted(self) -> list[Tensor]:
        """As the backend of the local parts found them."""
        unstarted = {id(local) for local in self._inner.unstarted()}
        return [p for p, local in zip(self.plan.params, self._locals, strict=True) if id(local) in unstarted]

    def row_norm_sq(self) -> list[float]:
        """The norms of the whole weights. Where these were written by others, all ranks have to ask together."""
        kept = [self.frozen_row_norm_sq(planned) for planned in self.plan.blocks]
        if None not in kept:
            return [norm for norm in kept if norm is not None]
        norms = zip(kept, self._current_norms().tolist(), strict=True)
        return [measured if frozen is None else frozen for frozen, measured in norms]

    def stale_steps(self) -> list[int]:
        """Those that this rank has seen in its parts."""
        stale = [0] * len(self.plan.blocks)
        for place, steps in zip(self._held, self._inner.stale_steps(), strict=True):
            stale[place] = steps
        return stale

    def forget_norms(self) -> None:
        """They are taken and summed before the next step."""
        super().forget_norms()
        self._inner.compare_masters()
        self._version_sum = -1

    def _local_plan(self) -> StepPlan:
        """The same for the local parts; of the blocks, those of which this rank holds anything."""
        blocks = [self.plan.blocks[place] for place in self._held]
        signatures = [(local.shape, local.dtype, local.device) for local in self._locals]
        # Each part draws random numbers of its own; where all ranks have the same, they draw the same.
        storage = [
            replace(stored, stream=split_stream(stored.stream, part_of(param)))
            for stored, param in zip(self.plan.storage, self.plan.params, strict=True)
        ]
        return replace(self.plan, params=self._locals, blocks=blocks, signatures=signatures, storage=storage)

    def _local_gradient(self, param: Any, name: str) -> Tensor | None:
        grad = param.grad
        if grad is None:
            return None
        if not is_sharded(grad) or grad.shape != param.shape:
            raise ValueError(
                f"gradient of {name}: got {type(grad).__name__} of shape {tuple(grad.shape)}, want a DTensor"
            )
        return local_as(grad, param)  # of a sequence-parallel layer it may be a partial sum

    def _lend_state(self) -> None:
        for param, local in zip(self.plan.params, self._locals, strict=True):
            lent = {key: value for key, value in self.state.get(param, {}).items() if key != "row_norm_sq"}
            if is_sharded(param):
                lent = {key: local_as(v, param) if isinstance(v, Tensor) else v for key, v in lent.items()}
            if lent:
                self._local_state[local] = lent
            else:
                self._local_state.pop(local, None)

    def _take_state_back(self) -> None:
        for param, local in zip(self.plan.params, self._locals, strict=True):
            for key, value in self._local_state.get(local, {}).items():
                known = self.state[param].get(key)
                if known is None or (local_of(known) if isinstance(known, Tensor) else known) is not value:
                    is_part = isinstance(value, Tensor) and is_sharded(param)
                    self.state[param][key] = whole_of(value, param) if is_part else value

    def _current_norms(self) -> Tensor:
        """‖W_b‖²_{2,μ} of every block as the last step left them, or taken anew where others have written since."""
        if self._version_sum != self._sum_of_versions():
            self._sum.start(self._spread(self._inner.measure_all()))
            self._version_sum = self._sum_of_versions()
        norms = self._sum.wait()
        if not norms.isfinite().all():
            # Others may have put other weights in the place of those, unseen. Ranks that share a sum all see this.
            self._sum.start_anew(self._spread(self._inner.measure_all()), ~norms.isfinite())
            norms = self._sum.wait()
        return norms

    def _give_frozen_norms(self, numbers: StepNumbers) -> None:
        values = numbers.on_host()
        # Whether or not they have gradients, which another rank need not have: all have to sum together.
        missing = [
            planned for planned in self.plan.blocks if planned.scaled and self.frozen_row_norm_sq(planned) is None
        ]
        norms = [self.frozen_row_norm_sq(planned) or 0.0 for planned in self.plan.blocks]
        if missing:
            self._version_sum = -1
            measured = self._current_norms().tolist()
            for place, planned in enumerate(self.plan.blocks):
                if planned in missing:
                    norms[place] = measured[place]
                    if self.plan.params[planned.param].grad is not None:
                        self.keep_norm(planned, measured[place], values[self.plan.group_of[planned.param]].lr)
        if norms != self._kept:
            self._inner.take_norms(torch.tensor(norms, dtype=torch.float64, device=self.plan.device)[self._places])
            self._kept = norms

    def _spread(self, of_parts: Tensor) -> Tensor:
        """A number for every block, 0 for those of which this rank holds nothing."""
        spread = torch.zeros(len(self.plan.blocks), dtype=torch.float64, device=self.plan.device)
        spread[self._places] = of_parts
        return spread

    def _versions(self) -> list[int]:
        return [param._version for param in self.plan.params]

    def _sum_of_versions(self) -> int:
        return sum(self.plan.params[planned.param]._version for planned in self.plan.blocks)
