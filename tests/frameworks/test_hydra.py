"""Hydra makes ScaleAmendedSGD from a configuration, of whose types no argument may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE

pytestmark = pytest.mark.nightly


@pytest.fixture
def make() -> Callable[[str], ScaleAmendedSGD]:
    """Makes the optimizer of a network from YAML."""
    hydra = pytest.importorskip("hydra", reason="hydra is not installed")
    omegaconf = pytest.importorskip("omegaconf")

    def make(written: str) -> ScaleAmendedSGD:
        config = omegaconf.OmegaConf.create(f"{{_target_: sasgd_fused.ScaleAmendedSGD, _partial_: true, {written}}}")
        optimizer: ScaleAmendedSGD = hydra.utils.instantiate(config)(parameter_groups(network()))
        return optimizer

    return make


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(DEVICE)


def step(optimizer: Optimizer) -> list[Tensor]:
    """Steps twice; returns the weights and the momentum."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    return [*params, *(optimizer.state[param]["momentum_buffer"] for param in params)]


@pytest.mark.parametrize(
    ("written", "options"),
    [
        ("nesterov: true", {"nesterov": True}),
        ("dampening: 0.5, maximize: true", {"dampening": 0.5, "maximize": True}),
        ("norms: freeze, head: plain, decay: shape", {"norms": "freeze", "head": "plain", "decay": "shape"}),
        ("factors: product, eps: 1e-2, output_width: 8", {"factors": "product", "eps": 1e-2, "output_width": 8}),
        ("backend: foreach, master_weights: false", {"backend": "foreach"}),
        ("foreach: false, fused: false", {"foreach": False, "fused": False}),
        ("foreach: null, fused: null, backend: null, momentum_dtype: null", {}),
        ("factors: {0.weight: 2, 2.weight: 0.5}", {"factors": {"0.weight": 2, "2.weight": 0.5}}),
        ("momentum_dtype: bfloat16", {"momentum_dtype": torch.bfloat16}),
        (
            "momentum_dtype: bfloat16, rounding: stochastic, rounding_seed: 3",
            {"momentum_dtype": torch.bfloat16, "rounding": "stochastic", "rounding_seed": 3},
        ),
    ],
)
def test_each_option_is_taken(make: Callable[[str], ScaleAmendedSGD], written: str, options: dict[str, Any]) -> None:
    made = make(f"lr: 5e-2, momentum: 0.9, weight_decay: 1e-3, {written}")
    beside = ScaleAmendedSGD(parameter_groups(network()), lr=0.05, momentum=0.9, weight_decay=1e-3, **options)
    assert made.layer_report() == beside.layer_report()
    for ours, wanted in zip(step(made), step(beside), strict=True):
        assert ours.dtype == wanted.dtype
        assert ours.equal(wanted)
