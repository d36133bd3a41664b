"""Mean, covariance and alpha of a preconditioner are those of the inputs of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sasgd_fused.precondition import CovariancePreconditioner
from tests.distributed.ranks import run_ranks
from tests.helpers import assert_close, cpu_only

pytestmark = cpu_only("processes that talk through gloo")

METHODS: dict[str, dict[str, Any]] = {
    "inverse": {"every": 2},
    "centred": {"inverse": False},
    "alpha max": {"every": 2, "alpha": "max", "loss_reduction": "mean"},
}


class Network(nn.Module):
    """Whose last layer not every process uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv1d(2, 4, 3, groups=2), nn.SiLU(), nn.Flatten(), nn.Linear(12, 6), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.first, self.last = nn.Linear(6, 3), nn.Linear(6, 3)
        self.double()

    def forward(self, inputs: Tensor, uses_last: list[bool]) -> Tensor:
        """Each example's output, for which the first or the last layer is used."""
        hidden = self.body(inputs)
        chosen = torch.tensor(uses_last)
        outputs = torch.zeros(len(inputs), 3, dtype=inputs.dtype)
        for layer, rows in ((self.first, ~chosen), (self.last, chosen)):
            if rows.any():
                outputs = outputs.masked_scatter(rows[:, None], layer(hidden[rows]))
        return outputs


def train(options: dict[str, Any], rank: int = 0, ranks: int = 1) -> list[Tensor]:
    """The weights and the gradients of the last of three steps; each process has a part of the batch."""
    model = Network()
    wrapped: nn.Module = DistributedDataParallel(model, find_unused_parameters=True) if ranks > 1 else model
    preconditioner = CovariancePreconditioner(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        inputs = torch.randn(8, 2, 5, generator=generator, dtype=torch.float64).chunk(ranks)[rank] + rank + 1
        if ranks == 1:
            inputs[4:] += 1
        # Alpha takes a layer's inputs for the batch over which the loss is averaged.
        uses_last = [index >= 4 and "alpha" not in options for index in range(8)]
        optimizer.zero_grad()
        wrapped(inputs, uses_last[rank * 8 // ranks : (rank + 1) * 8 // ranks]).tanh().square().sum(1).mean().backward()
        preconditioner.step()
        optimizer.step()
    weights = [param.detach() for param in model.parameters()]
    return weights + [param.grad for param in model.parameters() if param.grad is not None]


def train_all(rank: int) -> list[Any]:
    return [train(options, rank, dist.get_world_size()) for options in METHODS.values()]


def test_two_processes_do_what_one_does_with_the_whole_batch() -> None:
    """One of them without inputs of the last layer, the other without those of the first."""
    of_ranks = run_ranks(2, train_all)
    for index, (name, options) in enumerate(METHODS.items()):
        expected = train(options)
        for of_rank in of_ranks:
            for actual, wanted in zip(of_rank[index], expected, strict=True):
                assert_close(actual, wanted, torch.float64, name)
