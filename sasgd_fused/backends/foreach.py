"""The foreach backend: the step in torch._foreach calls over whole lists, for any device and dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.rounding import bits_for_momentum, bits_for_weight, store
from sasgd_fused.factors import decay_scale, layer_scale
from sasgd_fused.hyperparameters import GroupValues
from sasgd_fused.memory import is_away, is_opaque
from sasgd_fused.plan import PlannedBlock, State, StepPlan


class ForeachBackend(Backend):
    """Computes in the parameter's dtype, in float32 for 16-bit parameters."""

    name = "foreach"

    def __init__(self, plan: StepPlan, state: State) -> None:
        super().__init__(plan, state)
        self._is_opaque = any(map(is_opaque, plan.params))

    @torch.no_grad()
    def update(self, values: Sequence[GroupValues], grad_scale: float) -> None:
        """A handful of calls for all tensors."""
        active = [index for index, grad in enumerate(self.grads) if grad is not None]
        if not active:
            return
        self.follow_parameters()
        groups = [values[self.plan.group_of[index]] for index in active]
        stored = [self.weight_of(index) for index in active]
        weights = [_widen(weight) for weight in stored]
        grads = [self.grads[index].to(w.dtype) for index, w in zip(active, weights, strict=True)]  # type: ignore[union-attr]

        grad_coefficients, decays = self._coefficients(active, groups, grad_scale)
        grads = list(torch._foreach_mul(grads, grad_coefficients))
        decaying = [k for k, group in enumerate(groups) if group.weight_decay != 0]
        if decaying:  # only these: a weight may be infinite
            decay = torch._foreach_mul([weights[k] for k in decaying], [decays[k] for k in decaying])
            torch._foreach_add_([grads[k] for k in decaying], decay)
        try:
            self._apply_momentum(active, grads, groups)
            torch._foreach_mul_(grads, [-group.lr for group in groups])
            self._store_all(active, stored, list(torch._foreach_add(weights, grads)), bits_for_weight)
            for index, weight in zip(active, stored, strict=True):
                if self.plan.storage[index].has_master:
                    self.plan.params[index].copy_(weight)
        finally:  # after an interrupt too: part of the random numbers is used
            self.note_rounding(active)
            self.note_written()

    def _coefficients(
        self, active: list[int], groups: list[GroupValues], grad_scale: float
    ) -> tuple[list[float], list[float]]:
        """What multiplies each gradient and each weight: s_b and d_b, or 1 and λ."""
        options = self.plan.options
        factors = [(-1.0 if group.maximize else 1.0) / grad_scale for group in groups]
        decays = [group.weight_decay for group in groups]
        place = {index: k for k, index in enumerate(active)}
        scaled = [planned for planned in self.plan.blocks if planned.scaled and planned.param in place]
        for planned, row_norm_sq in zip(scaled, self.norms_of(scaled), strict=True):
            k = place[planned.param]
            self.keep_norm(planned, row_norm_sq, groups[k].lr)
            scale = layer_scale(row_norm_sq, planned.backward_factor, options.eps)
            decays[k] = decay_scale(scale, planned.backward_factor, decays[k], options.decay)
            factors[k] *= scale
        return factors, decays

    def measure(self, blocks: Sequence[PlannedBlock]) -> list[float]:
        """The same in one call and one transfer for all blocks."""
        if not blocks or self._is_opaque or self.plan.device.type == "meta" or any(map(is_away, self.plan.params)):
            return super().measure(blocks)
        self.follow_parameters()
        weights = [self.weight_of(planned.param) for planned in blocks]
        dtype = torch.float32 if self.plan.device.type == "mps" else torch.float64  # which Apple's GPUs lack
        sums = torch.stack(torch._foreach_norm(weights, 2, dtype)).square().tolist()
        if self._masters and not all(map(math.isfinite, sums)) and self._masters.give_way():
            return self.measure(blocks)
        return [total / planned.block.rows for total, planned in zip(sums, blocks, strict=True)]

    def _store_all(
        self, active: Sequence[int], to: list[Tensor], values: list[Tensor], bits_for: Callable[..., Tensor | None]
    ) -> None:
        """Rounds values of these parameters to their dtypes; random bits are there for one of them at a time."""
        if not self._stochastic:
            torch._foreach_copy_(to, values)
            return
        for index, target, value in zip(active, to, values, strict=True):
            store(
                target, value, bits_for(self.plan.storage[index], self.plan.params[index], self.rounding_step_of(index))
            )

    def _apply_momentum(self, active: list[int], grads: list[Tensor], groups: list[GroupValues]) -> None:
        """Updates the momentum buffers and turns `grads` into the steps taken, in place."""
        moving = [k for k, group in enumerate(groups) if group.momentum != 0]
        if not moving:
            return
        states = [self.state[self.plan.params[active[k]]] for k in moving]
        started = [state.get("momentum_buffer") is not None for state in states]
        for k, state, has_buffer in zip(moving, states, started, strict=True):
            param, dtype = self.plan.params[active[k]], self.plan.storage[active[k]].momentum_dtype
            if not has_buffer:
                state["momentum_buffer"] = torch.zeros_like(param, dtype=dtype)
            elif state["momentum_buffer"].dtype != dtype:  # as after model.half()
                state["momentum_buffer"] = state["momentum_buffer"].to(dtype)
        stored = [state["momentum_buffer"] for state in states]
        carried = [groups[k].momentum if has else 0.0 for k, has in zip(moving, started, strict=True)]
        shares = [1 - groups[k].dampening if has else 1.0 for k, has in zip(moving, started, strict=True)]

        buffers = [_widen(buffer) for buffer in stored]
        buffers = list(torch._foreach_mul(buffers, carried))
        torch._foreach_add_(buffers, torch._foreach_mul([grads[k] for k in moving], shares))
        self._store_all([active[k] for k in moving], stored, buffers, bits_for_momentum)
        for k, buffer in zip(moving, buffers, strict=True):
            grads[k] = grads[k].add_(buffer, alpha=groups[k].momentum) if groups[k].nesterov else buffer


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
