"""The relative scale as a plain prototype, with every choice in it as an argument, for the study to take apart.

A block b is a parameter of two or more dimensions, in a group that does not say `amend=False`. With its fan-in f_b,
elements by rows, and the number B of the blocks that are scaled:

    q_b = ‖g_b + λ W_b‖²                          before the step
    s_b = ‖W_b‖ / √(f_b B v_b)
    W_b moves by -lr times the momentum of s_b (g_b + λ W_b)
    v_b ← β v_b + (1 - β) q_b                     after the step

v_b is q_b itself at a block's first step, and wherever it is zero. Vectors are scaled by share √n / √(B v), with v
as above, of their own gradient without decay.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

EPS = 1e-3  # floor of the mean squared norm of a block's rows, as in ScaleAmendedSGD
DEPTH = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}  # the power of B in the scale


class RelativeSGD(Optimizer):
    """SGD with momentum, each block's step relative to the length of its weights.

    Args:
        params: parameters or groups, in the order of the network.
        lr: learning rate.
        momentum: factor of the momentum buffer.
        weight_decay: λ.
        fan_in: whether the scale has 1 / √f_b.
        depth: 1 / √B, 1 / B, or nothing.
        beta: share of the old v_b in the new one.
        exact: v_b is q_b of the same step always.
        head: the last block is scaled like the others, or left the plain step of SGD and out of B.
        vectors: scaled by their own gradient, or left the plain step times `vector_share`.
        vector_share: the share in the scale of vectors.
        decay: "amended", as above; "shape": λ W is added to the scaled gradient; "decoupled": W is multiplied by
            1 - lr λ, apart from the momentum. In the last two q_b is without decay.
        growth: v_b after a step is at least q_b / growth.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        fan_in: bool = True,
        depth: Literal["sqrt", "linear", "none"] = "sqrt",
        beta: float = 0.9,
        exact: bool = False,
        head: Literal["amended", "plain"] = "amended",
        vectors: Literal["own", "plain"] = "own",
        vector_share: float = 0.03,
        decay: Literal["amended", "shape", "decoupled"] = "amended",
        growth: float | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._fan_in, self._beta, self._exact, self._growth = fan_in, beta, exact, growth
        self._vectors, self._vector_share, self._decay = vectors, vector_share, decay
        blocks = [
            param
            for group in self.param_groups
            for param in group["params"]
            if param.dim() >= 2 and group.get("amend", True)
        ]
        self._head = blocks.pop() if head == "plain" else None
        self._blocks = set(blocks)
        self._depth_factor = max(len(blocks), 1) ** -DEPTH[depth]

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("closure: got one, want None")
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, **{key: group[key] for key in self.defaults})

    def _update(self, param: Tensor, grad: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        is_block = param in self._blocks
        is_vector = not is_block and param is not self._head
        shrinkage = 1.0
        if self._decay == "decoupled":
            shrinkage, weight_decay = 1 - lr * weight_decay, 0.0
        elif is_block and self._decay == "amended":
            grad, weight_decay = grad.add(param, alpha=weight_decay), 0.0
        scale = 1.0
        if is_block:
            size = math.sqrt(max(_square(param), EPS * len(param)))
            scale = size / math.sqrt(param.numel() / len(param) if self._fan_in else 1) * self._per_norm(param, grad)
        elif is_vector and self._vectors == "own":
            scale = self._vector_share * math.sqrt(param.numel()) * self._per_norm(param, grad)
        elif is_vector:
            scale = self._vector_share
        direction = (scale * grad).add_(param, alpha=weight_decay)
        state = self.state[param]
        if "momentum_buffer" in state:
            direction = state["momentum_buffer"].mul_(momentum).add_(direction)
        state["momentum_buffer"] = direction
        param.mul_(shrinkage).sub_(direction, alpha=lr)

    def _per_norm(self, param: Tensor, grad: Tensor) -> float:
        """Returns 1 / √v times the factor of the depth, and brings v up to date."""
        state: dict[str, Any] = self.state[param]
        q = _square(grad)
        v = 0.0 if self._exact else state.get("gradient_norm_sq", 0.0)
        v = v or q
        if math.isfinite(q):
            after = self._beta * v + (1 - self._beta) * q
            state["gradient_norm_sq"] = after if self._growth is None else max(after, q / self._growth)
        return self._depth_factor / math.sqrt(v) if v else 0.0


def _square(tensor: Tensor) -> float:
    """Returns the sum of squares, in float64."""
    return tensor.double().square().sum().item()
