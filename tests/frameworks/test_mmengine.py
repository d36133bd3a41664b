"""MMEngine's Runner trains with ScaleAmendedSGD, given as it is or by a configuration."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import cpu_only, randn

pytestmark = [
    pytest.mark.nightly,
    cpu_only("the Runner chooses the device itself"),
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning"),
]

OPTIONS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "scale": "relative"}

Train = Callable[[Callable[[nn.Module], Any]], ScaleAmendedSGD]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Trains by what a function makes of the model; returns the optimizer."""
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    runners, models, registry = (import_module(f"mmengine.{name}") for name in ("runner", "model", "registry"))
    registry.OPTIMIZERS.register_module(module=ScaleAmendedSGD, force=True)

    class Network(models.BaseModel):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, inputs: Tensor, labels: Tensor, mode: str) -> dict[str, Tensor]:
            return {"loss": nn.functional.cross_entropy(self.layers(inputs), labels)}

    data = list(zip(randn((32, 6), torch.Generator().manual_seed(1)), [0, 1, 2, 0] * 8, strict=True))

    def train(describe: Callable[[nn.Module], Any]) -> ScaleAmendedSGD:
        model = Network()
        runner = runners.Runner(
            model,
            str(tmp_path),
            train_dataloader=DataLoader(data, 8),
            train_cfg={"by_epoch": True, "max_epochs": 2},
            optim_wrapper={"type": "OptimWrapper", "clip_grad": {"max_norm": 1.0}, "optimizer": describe(model)},
            param_scheduler={"type": "CosineAnnealingLR", "T_max": 2, "by_epoch": True},
            log_level="ERROR",
            experiment_name=tmp_path.name,
        )
        before = [param.detach().clone() for param in model.parameters()]
        runner.train()
        assert not any(map(torch.equal, before, model.parameters()))
        optimizer = runner.optim_wrapper.optimizer
        assert isinstance(optimizer, ScaleAmendedSGD)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)  # half of the cosine
        return optimizer

    return train


def test_it_takes_our_groups(train: Train) -> None:
    optimizer = train(lambda model: ScaleAmendedSGD(parameter_groups(model), **OPTIONS))
    assert [row.name for row in optimizer.layer_report()[:2]] == ["layers.0.weight", "layers.2.weight"]


def test_a_configuration_makes_the_groups(train: Train) -> None:
    optimizer = train(lambda _: {"type": "ScaleAmendedSGD", **OPTIONS})
    assert [row.name for row in optimizer.layer_report()[:2]] == ["parameter 0 of group 0", "parameter 2 of group 0"]
