"""Masters, small momentum and stochastic rounding under DistributedDataParallel and ZeroRedundancyOptimizer."""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sasgd_fused import zero_redundancy_arguments
from tests.distributed.ranks import run_ranks
from tests.distributed.sharded_runs import backward
from tests.helpers import cpu_only
from tests.storage_cases import HYPERPARAMETERS, STOCHASTIC, STORAGE, optimizer_for, to_the_bit

pytestmark = cpu_only("processes that talk through gloo")
STEPS = 3
Grads = list[list[Tensor]]


def network(storage: str) -> nn.Module:
    """As wide as the batches that `backward` draws."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(STORAGE[storage][0])


def train(model: nn.Module, optimizer: Any, steps: range) -> Grads:
    """On this rank's part of each batch; returns the gradients of all ranks together."""
    dtype = next(model.parameters()).dtype
    wrapped = DistributedDataParallel(model)
    grads = []
    for step in steps:
        optimizer.zero_grad()
        backward(_Cast(wrapped, dtype), step, dist.get_rank(), dist.get_world_size())
        grads.append([param.grad.clone() for param in model.parameters() if param.grad is not None])
        optimizer.step()
    return grads


class _Cast(nn.Module):
    """Takes and gives float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.model(inputs.to(self.dtype))
        return outputs.float()


def outcome(model: nn.Module, optimizer: Any) -> list[Any]:
    return to_the_bit(model.parameters(), [dict(optimizer.state[param]) for param in model.parameters()])


def train_in_parallel(rank: int) -> list[tuple[list[Any], Grads]]:
    outcomes = []
    for storage in STORAGE:
        model = network(storage)
        optimizer = optimizer_for(model, storage)
        grads = train(model, optimizer, range(STEPS))
        outcomes.append((outcome(model, optimizer), grads))
    return outcomes


def test_ranks_have_the_same_weights_and_those_of_one_process() -> None:
    """To the bit: all draw the same random numbers, those of one process that gets the same gradients."""
    for outcomes in run_ranks(2, train_in_parallel):
        for storage, (actual, grads) in zip(STORAGE, outcomes, strict=True):
            model = network(storage)
            optimizer = optimizer_for(model, storage)
            for of_step in grads:
                for param, grad in zip(model.parameters(), of_step, strict=True):
                    param.grad = grad
                optimizer.step()
            assert actual == outcome(model, optimizer), storage


def train_with_parts_of_the_state(rank: int) -> list[dict[str, Any]]:
    """The weights of a run with a sharded optimizer, of those that go on from its checkpoint, and of one without it.

    Also how many steps of each parameter were rounded stochastically.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its import warns of torch's own torch.jit

    def begin(storage: str, sharded: bool) -> tuple[nn.Module, Any]:
        model = network(storage)
        arguments = zero_redundancy_arguments(model, **STORAGE[storage][1])
        if sharded:
            return model, ZeroRedundancyOptimizer(**arguments, **HYPERPARAMETERS)
        return model, arguments["optimizer_class"](arguments["params"], **HYPERPARAMETERS)

    def go_on(model: nn.Module, optimizer: Any, steps: range) -> list[Any]:
        train(model, optimizer, steps)
        return to_the_bit(model.parameters(), [])

    outcomes = []
    for storage in STORAGE:
        weights = {}
        model = network(storage)
        weights["whole"] = go_on(model, optimizer_for(model, storage), range(2 * STEPS))

        model, optimizer = begin(storage, True)
        go_on(model, optimizer, range(STEPS))
        optimizer.consolidate_state_dict(to=0)
        file = io.BytesIO()
        if rank == 0:
            torch.save([model.state_dict(), optimizer.state_dict()], file)
        sent = [file.getvalue()]
        dist.broadcast_object_list(sent, src=0)
        weights["sharded"] = go_on(model, optimizer, range(STEPS, 2 * STEPS))

        for sharded in (True, False):
            model, optimizer = begin(storage, sharded)
            saved_model, saved_optimizer = torch.load(io.BytesIO(sent[0]), weights_only=True)
            model.load_state_dict(saved_model)
            optimizer.load_state_dict(saved_optimizer)
            weights["resumed" if sharded else "resumed whole"] = go_on(model, optimizer, range(STEPS, 2 * STEPS))
        weights["rounded"] = [optimizer.state[param].get("rounding_step", 0) for param in model.parameters()]
        outcomes.append(weights)
    return outcomes


def test_a_sharded_optimizer_rounds_every_parameter() -> None:
    """Where it rounds to nearest, it has the bits of one that is not sharded; its checkpoint goes on to the bit."""
    first, other = run_ranks(2, train_with_parts_of_the_state)
    assert first == other
    for storage, weights in zip(STORAGE, first, strict=True):
        assert weights["resumed"] == weights["sharded"], storage
        if storage in STOCHASTIC:
            assert set(weights["rounded"]) == {2 * STEPS}, storage
        else:
            assert weights["sharded"] == weights["resumed whole"] == weights["whole"], storage
