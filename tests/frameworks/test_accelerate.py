"""Hugging Face's accelerate takes ScaleAmendedSGD as it takes torch.optim.SGD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, randn

pytestmark = pytest.mark.nightly

OPTIONS: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.01, "norms": "freeze", "head": "plain", "decay": "shape"}


@pytest.fixture
def accelerate() -> Any:
    return pytest.importorskip("accelerate", reason="accelerate is not installed")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(DEVICE)


def batches(count: int) -> list[Tensor]:
    return list(randn((count, 4, 6), torch.Generator().manual_seed(1)))


def test_it_accumulates_gradients(accelerate: Any) -> None:
    """Two halves of a batch give the step of the whole, and the scheduler waits for it."""
    accelerator = accelerate.Accelerator(cpu=DEVICE.type == "cpu", gradient_accumulation_steps=2)
    model, alone = network(), network()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.05, **OPTIONS)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, StepLR(optimizer, 1, 0.5))
    beside = ScaleAmendedSGD(parameter_groups(alone), lr=0.05, **OPTIONS)
    decay = StepLR(beside, 1, 0.5)
    for batch in batches(3):
        for half in batch.chunk(2):
            with accelerator.accumulate(model):
                accelerator.backward(model(half).square().mean())
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        alone(batch).square().mean().backward()
        beside.step()
        decay.step()
        beside.zero_grad()
    assert optimizer.param_groups[0]["lr"] == beside.param_groups[0]["lr"]
    for ours, other in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, other)
    assert optimizer.optimizer.layer_report().scalars() == pytest.approx(beside.layer_report().scalars(), rel=1e-5)


def test_it_says_that_a_step_was_skipped(accelerate: Any) -> None:
    """After an overflow of float16, so that the scheduler waits too; accelerate refuses float16 on a CPU itself."""
    accelerator = accelerate.Accelerator(cpu=DEVICE.type == "cpu")
    accelerator.scaler = torch.amp.GradScaler(DEVICE.type)
    model = network()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.05, **OPTIONS)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, StepLR(optimizer, 1, 0.5))
    for factor, skipped, lr in ((1.0, False, 0.025), (float("inf"), True, 0.025), (1.0, False, 0.0125)):
        before = [param.detach().clone() for param in model.parameters()]
        accelerator.backward(model(batches(1)[0]).square().mean() * factor)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        assert optimizer.step_was_skipped == skipped
        assert scheduler.get_last_lr()[0] == lr
        assert all(map(torch.equal, before, model.parameters())) == skipped


def test_it_does_not_know_of_a_skipped_step_where_the_step_unscales(accelerate: Any) -> None:
    accelerator = accelerate.Accelerator(cpu=DEVICE.type == "cpu")
    accelerator.scaler = torch.amp.GradScaler(DEVICE.type)
    model = network()
    model, optimizer = accelerator.prepare(model, ScaleAmendedSGD(parameter_groups(model), lr=0.05, fused=True))
    before = [param.detach().clone() for param in model.parameters()]
    accelerator.backward(model(batches(1)[0]).square().mean() * float("inf"))
    optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    assert not optimizer.step_was_skipped


def test_it_goes_on_from_a_saved_state(accelerate: Any, tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=DEVICE.type == "cpu")
    model = network()
    model, optimizer = accelerator.prepare(model, ScaleAmendedSGD(parameter_groups(model), lr=0.05, **OPTIONS))

    def train() -> list[float]:
        losses = []
        for batch in batches(3):
            loss = model(batch).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    train()
    accelerator.save_state(str(tmp_path))
    wanted = train()
    weights = [param.detach().clone() for param in model.parameters()]
    accelerator.load_state(str(tmp_path))
    assert train() == wanted
    assert all(map(torch.equal, weights, model.parameters()))
