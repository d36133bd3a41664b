"""skorch makes ScaleAmendedSGD from its class and options."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import cpu_only, randn

pytestmark = [pytest.mark.nightly, cpu_only("skorch puts data there by default")]


def test_it_makes_the_groups_itself_from_the_class() -> None:
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    torch.manual_seed(0)
    net = skorch.NeuralNet(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
        criterion=nn.CrossEntropyLoss,
        optimizer=ScaleAmendedSGD,
        optimizer__scale="relative",
        lr=0.1,
        max_epochs=5,
        train_split=None,
        verbose=0,
    )
    net.fit(randn((32, 6), torch.Generator().manual_seed(1)).numpy(), (torch.arange(32) % 3).numpy())
    losses = net.history[:, "train_loss"]
    assert losses[-1] < losses[0]
    names = [row.name for row in net.optimizer_.layer_report()]
    assert names == [f"parameter {place} of group 0" for place in (0, 2, 1, 3)]
