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

_SPAN = 1024  # elements whose squares are added in float32


class ForeachBackend(Backend):
    """Computes in the parameter's dtype, in float32 for 16-bit parameters."""

    name = "foreach"

    @torch.no_grad()
    def update(self, grads: Gradients, values: Sequence[GroupValues], loss_scale: float) -> None:
        """Takes a step in a handful of calls for all tensors, with memory for one copy of the gradients."""
        active = [index for index, grad in enumerate(grads) if grad is not None]
        groups = [values[self.plan.group_of[index]] for index in active]
        stored = [self.weight_of(index) for index in active]
        weights = [_widen(weight) for weight in stored]
        raw = [grads[index].to(w.dtype) for index, w in zip(active, weights, strict=True)]  # type: ignore[union-attr]

        scales = self.take_scales(grads, values, loss_scale)
        pairs = [
            _factor_and_ratio(*scales.get(index, (1.0, group.weight_decay)), group, loss_scale)
            for index, group in zip(active, groups, strict=True)
        ]
        factors = [factor for factor, _ in pairs]
        steps: list[Tensor] = []
        for ratio, same in _runs([ratio for _, ratio in pairs]):
            if ratio == 0:  # a weight may be infinite
                steps += torch._foreach_mul(raw[same], factors[same])
            else:
                decayed = torch._foreach_add(raw[same], weights[same], alpha=ratio)
                torch._foreach_mul_(decayed, factors[same])
                steps += decayed
        self._apply_momentum(active, steps, groups)
        for lr, same in _runs([group.lr for group in groups]):
            torch._foreach_add_(weights[same], steps[same], alpha=-lr)
        self._store_all(active, stored, weights, bits_for_weight)
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
        sums = torch.stack(_norms(weights, dtype)).square().tolist()
        if self.masters and not all(map(math.isfinite, sums)) and self.masters.give_way():
            return self.measure(layers)
        return [total / planned.layer.rows for total, planned in zip(sums, layers, strict=True)]

    def _store_all(
        self,
        active: Sequence[int],
        to: Sequence[Tensor],
        values: Sequence[Tensor],
        bits_for: Callable[..., Tensor | None],
    ) -> None:
        """Rounds values of these parameters to their dtypes, where they are not in their place already."""
        wider = [k for k, value in enumerate(values) if value is not to[k]]
        if not self._stochastic:
            if wider:
                torch._foreach_copy_([to[k] for k in wider], [values[k] for k in wider])
            return
        for k in wider:  # random bits are there for one of them at a time
            index = active[k]
            bits = bits_for(self.plan.precisions[index], self.plan.params[index], self.rounding_step_of(index))
            store(to[k], values[k], bits)

    def _apply_momentum(self, active: list[int], steps: list[Tensor], groups: list[GroupValues]) -> None:
        """Updates the momentum buffers and turns `steps` into the steps taken, in place."""
        moving = [k for k, group in enumerate(groups) if group.momentum != 0]
        if not moving:
            return
        stored, has_started = zip(*(self.momentum_of(active[k]) for k in moving), strict=True)
        buffers = [_widen(buffer) for buffer in stored]
        carried = [groups[k].momentum if has else 0.0 for k, has in zip(moving, has_started, strict=True)]
        torch._foreach_mul_(buffers, carried)
        shares = [1 - groups[k].dampening if has else 1.0 for k, has in zip(moving, has_started, strict=True)]
        added = [steps[k] for k in moving]
        if any(share != 1 for share in shares):
            added = list(torch._foreach_mul(added, shares))  # Nesterov momentum needs the steps once more
        torch._foreach_add_(buffers, added)
        self._store_all([active[k] for k in moving], stored, buffers, bits_for_momentum)
        for k, buffer in zip(moving, buffers, strict=True):
            steps[k] = steps[k].add_(buffer, alpha=groups[k].momentum) if groups[k].nesterov else buffer


def _factor_and_ratio(scale: float, decay: float, group: GroupValues, loss_scale: float) -> tuple[float, float]:
    """Returns f and r, such that f · (gradient + r · weight) is the amended gradient: one pass and one temporary.

    r is the same for all layers of a group where decay is scaled as the gradient is. A scale of zero is that of a
    gradient of zeros, which any will do for.
    """
    if scale == 0:
        scale = 1.0
    share = group.weight_decay if decay == scale * group.weight_decay else decay / scale
    sign = -1.0 if group.maximize else 1.0
    return sign * scale / loss_scale, sign * share * loss_scale


def _norms(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Returns the norm of each.

    On the CPU, where float64 takes four times as long, squares are added in float32 by spans, as in the kernels.
    """
    spans = [
        torch.linalg.vector_norm(weight.reshape(-1, _SPAN), dim=1)
        if weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() % _SPAN == 0
        else weight
        for weight in weights
    ]
    return list(torch._foreach_norm(spans, 2, dtype))


def _runs(values: Sequence[float]) -> list[tuple[float, slice]]:
    """Returns each run of equal values and where it is."""
    ends = [k + 1 for k in range(len(values)) if k + 1 == len(values) or values[k + 1] != values[k]]
    return [(values[start], slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
