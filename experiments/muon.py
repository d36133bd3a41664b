"""torch's Muon for whole networks: it takes matrices alone, so kernels are shown to it as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

ADAMW_RMS = "match_rms_adamw"  # rates for Muon are then as for AdamW (Liu et al. 2025), so that one serves both


def make_muon(model: nn.Module, lr: float, weight_decay: float, backend: str | None = None) -> MuonAndAdamW:
    """Makes Muon for all layers but the last, AdamW for the other parameters, as Muon's authors have it."""
    parameters = list(model.parameters())
    *hidden, _ = [parameter for parameter in parameters if parameter.dim() >= 2]
    chosen = set(map(id, hidden))
    others = [parameter for parameter in parameters if id(parameter) not in chosen]
    return MuonAndAdamW(hidden, others, lr, weight_decay)


class MuonAndAdamW(Optimizer):
    """One optimizer of two, which share learning rate and weight decay.

    Args:
        kernels: for Muon, each as the matrix (rows, everything else).
        others: for AdamW.
        lr: learning rate.
        weight_decay: decoupled weight decay.
    """

    def __init__(self, kernels: Sequence[Tensor], others: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        self._kernels = list(kernels)
        # Muon has states and decay for these, which share the kernels' memory.
        self._matrices = [nn.Parameter(kernel.detach().view(len(kernel), -1)) for kernel in kernels]
        self._muon = torch.optim.Muon(self._matrices, lr, weight_decay, adjust_lr_fn=ADAMW_RMS)
        self._adamw = torch.optim.AdamW(others, lr, weight_decay=weight_decay)
        super().__init__([*kernels, *others], {"lr": lr})
        self._share_groups()

    def _share_groups(self) -> None:
        """Has a scheduler that sets the rate of this optimizer's groups set that of both."""
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("closure: got one, want None")
        for matrix, kernel in zip(self._matrices, self._kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.reshape(matrix.shape)
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for kernel in self._kernels:
            kernel.grad = None
        self._adamw.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])
        self._share_groups()
