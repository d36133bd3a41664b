"""ScaleAmendedSGD goes through timm's registry and factory, and finds the heads of its models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, randn

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("default_device")]


@pytest.fixture
def registry() -> Any:
    """One of its own: timm's stays as it is."""
    factory = pytest.importorskip("timm.optim", reason="timm is not installed")._optim_factory
    registry = factory.OptimizerRegistry()
    registry.register(factory.OptimInfo(name="sasgd", opt_class=ScaleAmendedSGD, has_momentum=True))
    return registry


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 10)).to(DEVICE)


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(randn((4, 3, 4, 4), torch.Generator().manual_seed(0))).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_timm_takes_weight_decay_off_vectors(registry: Any) -> None:
    model = network()
    optimizer = registry.create_optimizer(model, "sasgd", lr=0.01, weight_decay=0.05)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(4, 0), (2, 0.05)]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]
    assert [row.rows for row in optimizer.layer_report()] == [8, 10]
    losses = train(model, optimizer, 5)
    assert losses[-1] < losses[0]


def test_timm_takes_our_groups(registry: Any) -> None:
    optimizer = registry.create_optimizer(network(), "sasgd", param_group_fn=parameter_groups, head="plain")
    assert [(row.name, row.scaled) for row in optimizer.layer_report()] == [("0.weight", True), ("3.weight", False)]


def test_timms_factory_takes_our_groups(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the function that its training script calls."""
    factory = pytest.importorskip("timm.optim")._optim_factory
    monkeypatch.setattr(factory, "default_registry", registry)
    model = network()
    optimizer = factory.create_optimizer_v2(model, opt="sasgd", lr=0.01, param_group_fn=parameter_groups, head="plain")
    assert [(row.name, row.scaled) for row in optimizer.layer_report()] == [("0.weight", True), ("3.weight", False)]
    losses = train(model, optimizer, 5)
    assert losses[-1] < losses[0]


def test_timm_lookahead_goes_on_from_a_checkpoint(registry: Any) -> None:
    """It writes into the weights and the state, after every sixth step."""
    model, twin = network(), network()
    optimizer, resumed = (registry.create_optimizer(each, "lookahead_sasgd", lr=0.01) for each in (model, twin))
    losses = train(model, optimizer, 7)
    assert losses[-1] < losses[0]
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(twin, resumed, 7) == train(model, optimizer, 7)


def test_a_model_with_two_heads_tells_them_itself() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    groups = parameter_groups(timm.create_model("deit_tiny_distilled_patch16_224", depth=1, num_classes=3))
    report = ScaleAmendedSGD(groups, lr=0.1, head="plain").layer_report()
    plain = {row.name for row in report if not row.scaled and row.name.endswith(".weight") and row.columns > 1}
    assert plain == {"head.weight", "head_dist.weight"}


@pytest.mark.parametrize(("options", "named"), [({}, False), ({"param_group_fn": parameter_groups}, True)])
def test_layer_decay_is_for_timms_groups_alone(
    registry: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], named: bool
) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.setattr(timm.optim._optim_factory, "default_registry", registry)
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3)
    optimizer = timm.optim.create_optimizer_v2(model, opt="sasgd", lr=0.1, layer_decay=0.5, **options)
    assert ("lr_scale" in optimizer.param_groups[0]) == (not named)
    assert (optimizer.layer_report()[0].name == "cls_token") == named
