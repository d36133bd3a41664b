"""A training step compiled as a whole does what it does uncompiled; the optimizer's part runs outside the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, backends


def losses(backend: str, compiled: bool) -> list[float]:
    torch.manual_seed(0)
    inputs, labels = torch.randn(16, 4).to(DEVICE), torch.randint(0, 3, (16,)).to(DEVICE)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(DEVICE)
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.05, momentum=0.9, backend=backend)
    schedule = ExponentialLR(optimizer, 0.9)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss

    run = torch.compile(step, backend="eager") if compiled else step
    seen = []
    for _ in range(6):
        seen.append(run().item())
        schedule.step()
    return seen


@pytest.mark.parametrize("backend", backends())
@pytest.mark.filterwarnings("ignore")  # of torch's own, about the profiler and about dynamo itself
def test_a_compiled_step(backend: str) -> None:
    torch._dynamo.reset()
    frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert losses(backend, compiled=True) == pytest.approx(losses(backend, compiled=False), rel=1e-6)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - frames
    assert graphs == 1, "a new learning rate compiles nothing anew, and nothing of the optimizer is traced"
