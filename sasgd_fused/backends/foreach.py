"""The foreach backend: the step in torch._foreach calls over whole lists, for any device and dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sasgd_fused.backends.base import Backend, Gradients
from sasgd_fused.backends.rounding import bits_for_momentum, bits_for_weight, store
from sasgd_fused.hyperparameters import GroupValues
from sasgd_fused.memory import is_away
from sasgd_fused.plan import PlannedLayer


class ForeachBackend(Backend):
    """Computes in the parameter's dtype, in float32 for 16-bit parameters."""

    name = "foreach"

    @torch.no_grad()
    def update(self, grads: Gradients, values: Sequence[GroupValues], loss_scale: float) -> None:
        """Takes a step in a handful of calls for all tensors."""
        active = [index for index, grad in enumerate(grads) if grad is not None]
        groups = [values[self.plan.group_of[index]] for index in active]
        stored = [self.weight_of(index) for index in active]
        weights = [_widen(weight) for weight in stored]
        steps = [grads[index].to(w.dtype) for index, w in zip(active, weights, strict=True)]  # type: ignore[union-attr]

        scales = self.take_scales(grads, values, loss_scale)
        pairs = [scales.get(index, (1.0, group.weight_decay)) for index, group in zip(active, groups, strict=True)]
        signs = [(-1.0 if group.maximize else 1.0) / loss_scale for group in groups]
        steps = list(torch._foreach_mul(steps, [sign * scale for sign, (scale, _) in zip(signs, pairs, strict=True)]))
        decaying = [k for k, group in enumerate(groups) if group.weight_decay != 0]
        if decaying:  # only these: a weight may be infinite
            decay = torch._foreach_mul([weights[k] for k in decaying], [pairs[k][1] for k in decaying])
            torch._foreach_add_([steps[k] for k in decaying], decay)
        self._apply_momentum(active, steps, groups)
        torch._foreach_mul_(steps, [-group.lr for group in groups])
        self._store_all(active, stored, list(torch._foreach_add(weights, steps)), bits_for_weight)
        for index, weight in zip(active, stored, strict=True):
            if self.plan.precisions[index].has_master:
                self.plan.params[index].copy_(weight)

    def measure(self, layers: Sequence[PlannedLayer]) -> list[float]:
        """Returns the same in one call and one transfer for all layers."""
        if not layers or self._is_opaque or self.plan.device.type == "meta" or any(map(is_away, self.plan.params)):
            return super().measure(layers)
        self.masters.follow()
        weights = [self.weight_of(planned.param) for planned in layers]
        dtype = torch.float32 if self.plan.device.type == "mps" else torch.float64  # which Apple's GPUs lack
        sums = torch.stack(torch._foreach_norm(weights, 2, dtype)).square().tolist()
        if self.masters and not all(map(math.isfinite, sums)) and self.masters.give_way():
            return self.measure(layers)
        return [total / planned.layer.rows for total, planned in zip(sums, layers, strict=True)]

    def _store_all(
        self, active: Sequence[int], to: list[Tensor], values: list[Tensor], bits_for: Callable[..., Tensor | None]
    ) -> None:
        """Rounds values of these parameters to their dtypes; random bits are there for one of them at a time."""
        if not self._stochastic:
            torch._foreach_copy_(to, values)
            return
        for index, target, value in zip(active, to, values, strict=True):
            store(
                target,
                value,
                bits_for(self.plan.precisions[index], self.plan.params[index], self.rounding_step_of(index)),
            )

    def _apply_momentum(self, active: list[int], steps: list[Tensor], groups: list[GroupValues]) -> None:
        """Updates the momentum buffers and turns `steps` into the steps taken, in place."""
        moving = [k for k, group in enumerate(groups) if group.momentum != 0]
        if not moving:
            return
        stored, has_started = zip(*(self.momentum_of(active[k]) for k in moving), strict=True)
        carried = [groups[k].momentum if has else 0.0 for k, has in zip(moving, has_started, strict=True)]
        shares = [1 - groups[k].dampening if has else 1.0 for k, has in zip(moving, has_started, strict=True)]

        buffers = list(torch._foreach_mul([_widen(buffer) for buffer in stored], carried))
        torch._foreach_add_(buffers, torch._foreach_mul([steps[k] for k in moving], shares))
        self._store_all([active[k] for k in moving], list(stored), buffers, bits_for_momentum)
        for k, buffer in zip(moving, buffers, strict=True):
            steps[k] = steps[k].add_(buffer, alpha=groups[k].momentum) if groups[k].nesterov else buffer


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
