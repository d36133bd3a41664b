"""Steps over DTensors (FSDP2, tensor parallelism): each rank updates its parts, and norms are sums over the ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.summed_norms import SummedNorms
from sasgd_fused.hyperparameters import StepNumbers
from sasgd_fused.plan import State, StepPlan
from sasgd_fused.precision import split_stream
from sasgd_fused.shards import is_set_anywhere, is_sharded, local_as, local_of, part_of, whole_of

MakeBackend = Callable[[StepPlan, State], Backend]


class ShardedBackend(Backend):
    """Runs a backend for plain tensors on the local parts, and gives it the norms of the whole weights.

    All ranks have to take the same steps.

    Args:
        plan: the parameters of one device, DTensors and others.
        state: the optimizer's state; momentum buffers and masters in it are DTensors like their parameters.
        make: makes the backend that runs on the local parts.
    """

    def __init__(self, plan: StepPlan, state: State, make: MakeBackend) -> None:
        super().__init__(plan, state)
        self._locals = [local_of(param) for param in plan.params]
        self._local_state: State = defaultdict(dict)
        held = [b for b, planned in enumerate(plan.layers) if self._locals[planned.param].numel()]
        self._inner = make(self._local_plan(held), self._local_state)
        self.norms = SummedNorms(plan, state, self._inner, held)
        self.gradient_norms = self.norms.gradients
        self._versions_after_step: list[int] = []  # versions of the parameters after the last step
        self.name = self._inner.name

    def prepare(self, only: int | None = None) -> tuple[list[int], Any] | None:
        """Lends the backend of the local parts this step's gradients and the state."""
        if not self.fits():
            return None
        parts = list(zip(self.plan.params, self._locals, self.plan.names, strict=True))
        chosen = range(len(parts)) if only is None else [only]
        active = [index for index in chosen if parts[index][0].grad is not None]
        self.plan.check_state(self.state, active)
        for index in chosen:
            param, local, name = parts[index]
            if is_sharded(param):
                local.grad = self._local_gradient(param, name)  # the inner `prepare` reads it, and keeps it
            self._lend_state(param, local)
        if self.plan.has_masters and self._versions() != self._versions_after_step:
            self._inner.masters.compare()  # the counters of the local parts do not show it
        try:
            prepared = self._inner.prepare(only)
        finally:
            for index in chosen:
                if is_sharded(parts[index][0]):
                    parts[index][1].grad = None
        return None if prepared is None else (active, prepared)

    def fits(self) -> bool:
        """Returns whether the parameters have the same local parts as before."""
        parts = zip(self.plan.params, self._locals, strict=True)
        return self.plan.is_current() and all(local_of(param) is local for param, local in parts)

    def step(self, prepared: tuple[list[int], Any], numbers: StepNumbers) -> None:
        """Updates the local parts; the sums of squares of what they are then are on their way when this returns."""
        active, of_parts = prepared
        if numbers.found_inf is not None:
            # The scaler looks at the first gradient's ranks alone, and all must do the same.
            if is_set_anywhere(numbers.found_inf, self.plan.params):
                return
            numbers = replace(numbers, found_inf=None)
        self.norms.before_step(active, of_parts, numbers)
        try:
            self._inner.step(of_parts, numbers)
        finally:  # after an interrupt too: the local parts may be written
            self._take_state_back()
            params = [self.plan.params[index] for index in active]
            torch.autograd.graph.increment_version([param for param in params if is_sharded(param)])
            self._versions_after_step = self._versions()
        self.norms.after_step(active)

    def sync_state(self) -> None:
        """Brings into the state what only the device knows of the local parts."""
        self._inner.sync_state()
        self._take_state_back()
        self.norms.sync_state()

    def not_started(self) -> list[Tensor]:
        """Returns those of which the backend of the local parts says it."""
        not_started = {id(local) for local in self._inner.not_started()}
        return [p for p, local in zip(self.plan.params, self._locals, strict=True) if id(local) in not_started]

    def report(self) -> tuple[list[float], list[int]]:
        """Returns the norms of the whole weights. If others have written these, all ranks have to ask together."""
        norms, stale = self.norms.report()
        return norms, stale

    def _local_plan(self, held: list[int]) -> StepPlan:
        """Returns the plan of the local parts, with those layers of which this rank holds anything.

        Their rows are those of the whole, so that sums of squares / rows of the parts add up to its norm.
        """
        signatures = [(local.shape, local.dtype, local.device) for local in self._locals]
        # Each part draws random numbers of its own; where all ranks have the same, they draw the same.
        precisions = [
            replace(stored, stream=split_stream(stored.stream, part_of(param)))
            for stored, param in zip(self.plan.precisions, self.plan.params, strict=True)
        ]
        layers = [self.plan.layers[place] for place in held]
        return replace(self.plan, params=self._locals, layers=layers, signatures=signatures, precisions=precisions)

    def _local_gradient(self, param: Any, name: str) -> Tensor | None:
        grad = param.grad
        if grad is None:
            return None
        if not is_sharded(grad) or grad.shape != param.shape:
            raise ValueError(
                f"gradient of {name}: got {type(grad).__name__} of shape {tuple(grad.shape)}, want a DTensor"
            )
        return local_as(grad, param)  # of a sequence-parallel layer it may be a partial sum

    def _lend_state(self, param: Tensor, local: Tensor) -> None:
        # Norms stay here: the inner backend is given them, and keeps none.
        kept = ("row_norm_sq", "gradient_norm_sq")
        lent = {key: value for key, value in self.state.get(param, {}).items() if key not in kept}
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

    def _versions(self) -> list[int]:
        return [param._version for param in self.plan.params]
