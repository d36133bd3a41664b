"""The reference backend: Algorithm 2 literally, one tensor at a time, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.rounding import bits_for_momentum, bits_for_weight, store
from sasgd_fused.hyperparameters import GroupValues


class ReferenceBackend(Backend):
    """Computes in float64 and rounds once, when weights and momentum are stored. Any device with float64."""

    name = "reference"

    @torch.no_grad()
    def update(self, values: Sequence[GroupValues], grad_scale: float) -> None:
        """The scales of all blocks, then one tensor after the other."""
        self.follow_parameters()
        scales = self._backward_scales(values)
        try:
            self._update_all(values, grad_scale, scales)
        finally:  # after an interrupt too: part of the random numbers is used
            self.note_rounding([index for index, grad in enumerate(self.grads) if grad is not None])
            self.note_written()

    def _update_all(
        self, values: Sequence[GroupValues], grad_scale: float, scales: dict[int, tuple[float, float]]
    ) -> None:
        for index, (param, grad) in enumerate(zip(self.plan.params, self.grads, strict=True)):
            if grad is None:
                continue
            group = values[self.plan.group_of[index]]
            scale, decay = scales.get(index, (1.0, group.weight_decay))
            sign = -1.0 if group.maximize else 1.0
            g = grad.double() * (sign / grad_scale)
            weight = self.weight_of(index)
            drawn = self.plan.storage[index], param, self.rounding_step_of(index)
            g = scale * g
            if group.weight_decay != 0:  # else the weight has no part in it: it may be infinite
                g = g + decay * weight.double()
            if group.momentum != 0:
                g = self._apply_momentum(index, g, group, bits_for_momentum(*drawn))
            store(weight, weight.double() - group.lr * g, bits_for_weight(*drawn))
            if weight.dtype != param.dtype:
                param.copy_(weight)

    def _backward_scales(self, values: Sequence[GroupValues]) -> dict[int, tuple[float, float]]:
        """(s_b, d_b) of each scaled block that has a gradient, by equation (22)."""
        options, plan = self.plan.options, self.plan
        scales = {}
        for planned in plan.blocks:
            m = planned.backward_factor
            if planned.scaled and self.grads[planned.param] is not None:
                group = values[plan.group_of[planned.param]]
                (row_norm_sq,) = self.norms_of([planned])
                self.keep_norm(planned, row_norm_sq, group.lr)
                scale = 1 / m * max(row_norm_sq, options.eps)  # (22), with 1 / m_{b,W} by (24)
                decay = group.weight_decay * (scale if options.decay == "amended" else 1 / m)
                scales[planned.param] = scale, decay
        return scales

    def _apply_momentum(self, index: int, g: Tensor, group: GroupValues, random: Tensor | None) -> Tensor:
        param, dtype = self.plan.params[index], self.plan.storage[index].momentum_dtype
        state = self.state[param]
        stored = state.get("momentum_buffer")
        if stored is None:
            stored = state["momentum_buffer"] = torch.empty_like(param, dtype=dtype)
            buffer = g
        else:
            if stored.dtype != dtype:  # as after model.half()
                stored = state["momentum_buffer"] = stored.to(dtype)
            buffer = group.momentum * stored.double() + (1 - group.dampening) * g
        store(stored, buffer, random)
        return g + group.momentum * buffer if group.nesterov else buffer
