"""The reference backend: Algorithm 2 literally, one tensor at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sasgd_fused.backends.base import Backend, Gradients
from sasgd_fused.backends.rounding import bits_for_momentum, bits_for_weight, store
from sasgd_fused.factors import LARGEST_SCALE, VECTOR_SHARE
from sasgd_fused.hyperparameters import GroupValues


class ReferenceBackend(Backend):
    """Computes in float64 and rounds once, when weights and momentum are stored. Any device with float64."""

    name = "reference"

    @torch.no_grad()
    def update(self, grads: Gradients, values: Sequence[GroupValues], loss_scale: float) -> None:
        """Takes the scales of all layers, and then updates one tensor after the other."""
        if self.plan.options.is_relative:
            scales = self._take_relative_scales(grads, values, loss_scale)
        else:
            scales = self._take_scales(grads, values)
        for index, (param, grad) in enumerate(zip(self.plan.params, grads, strict=True)):
            if grad is None:
                continue
            group = values[self.plan.group_of[index]]
            scale, decay = scales.get(index, (1.0, group.weight_decay))
            sign = -1.0 if group.maximize else 1.0
            g = grad.double() * (sign / loss_scale)
            weight = self.weight_of(index)
            drawn = self.plan.precisions[index], param, self.rounding_step_of(index)
            g = scale * g
            if group.weight_decay != 0:  # else the weight has no part in it: it may be infinite
                g = g + decay * weight.double()
            if group.momentum != 0:
                stored, has_started = self.momentum_of(index)
                buffer = group.momentum * stored.double() + (1 - group.dampening) * g if has_started else g
                store(stored, buffer, bits_for_momentum(*drawn))
                g = g + group.momentum * buffer if group.nesterov else buffer
            store(weight, weight.double() - group.lr * g, bits_for_weight(*drawn))
            if weight.dtype != param.dtype:
                param.copy_(weight)

    def _take_scales(self, grads: Gradients, values: Sequence[GroupValues]) -> dict[int, tuple[float, float]]:
        """Returns (s_b, d_b) of each scaled layer that has a gradient; m_b is that of `factors`."""
        options, scales = self.plan.options, {}
        for planned in reversed(self.plan.layers):
            if planned.scaled and grads[planned.param] is not None:
                group, m = values[self.plan.group_of[planned.param]], planned.backward_factor
                (row_norm_sq,) = self.norms.of([planned])
                self.norms.keep(planned, row_norm_sq, group.lr != 0)
                scale = 1 / m * max(row_norm_sq, options.eps)  # (22), with 1 / m_{b,W} by (24)
                decay = group.weight_decay * (scale if options.decay == "amended" else 1 / m)
                scales[planned.param] = scale, decay
        return scales

    def _take_relative_scales(
        self, grads: Gradients, values: Sequence[GroupValues], loss_scale: float
    ) -> dict[int, tuple[float, float]]:
        """Returns (s_b, d_b) of the relative scale: s_b = ‖W_b‖ / √(f_b B v_b), for vectors 0.03 √n / √(B v)."""
        eps, depth, norms = self.plan.options.eps, self.plan.depth, self.gradient_norms
        measured = self.measure_gradients(grads, values, loss_scale)
        norms.note(measured)
        scales = {}
        for planned in self.plan.layers:
            if planned.param not in measured:
                continue
            elements, rows = planned.elements, planned.layer.rows
            v = norms.before_step(planned)
            if planned.is_vector:
                numerator, denominator = VECTOR_SHARE * math.sqrt(elements), math.sqrt(depth * v)
            else:
                (row_norm_sq,) = self.norms.of([planned])
                numerator = math.sqrt(max(row_norm_sq, eps) * rows)
                denominator = math.sqrt(elements / rows * depth * v)
            scale = 0.0 if v == 0 else min(numerator / denominator, LARGEST_SCALE)
            weight_decay = values[self.plan.group_of[planned.param]].weight_decay
            scales[planned.param] = scale, weight_decay * (scale if self.decays_first(planned) else 1.0)
        norms.carry()
        return scales
