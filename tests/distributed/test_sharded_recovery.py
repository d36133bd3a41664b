"""Sharded parameters whose weights were spoilt, or whose step was interrupted: training goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sasgd_fused import ScaleAmendedSGD
from tests.distributed.ranks import run_ranks
from tests.distributed.sharded_runs import backward, needs_fsdp, network, optimizer_for, outcome, shard, train, whole
from tests.helpers import backends, cpu_only

pytestmark = [cpu_only("processes that talk through gloo"), needs_fsdp]


def local(param: Any) -> Tensor:
    part: Tensor = param.to_local() if hasattr(param, "to_local") else param
    return part.detach()


def recover(rank: int, backend: str) -> list[Any]:
    model = network()
    part, parts = shard(model, "fully sharded")
    optimizer = optimizer_for(model, "track", backend=backend)
    train(model, optimizer, range(2), part, parts)
    backup = [local(param).clone() for param in model.parameters()]
    backward(model, 2, part, parts)
    for param in model.parameters():
        local(param.grad).fill_(float("nan"))
    optimizer.step()
    for param, value in zip(model.parameters(), backup, strict=True):
        local(param).data.copy_(value)
        optimizer.state[param].pop("momentum_buffer")
    train(model, optimizer, range(2, 5), part, parts)
    return [whole(param).isfinite().all().item() for param in model.parameters()]


@pytest.mark.parametrize("backend", backends(("native", "foreach")))
def test_weights_put_back_unseen(backend: str) -> None:
    for finite in run_ranks(2, recover, backend):
        assert all(finite)


def interrupt(rank: int) -> list[Any]:
    """After the step of the local parts, before what follows it."""
    model = network()
    part, parts = shard(model, "fully sharded")
    optimizer = optimizer_for(model, "freeze", backend="native")
    backward(model, 0, part, parts)
    optimizer.layer_report()
    (sharded,) = optimizer._stepper.backends or []
    inner = vars(sharded)["_inner"]
    step = inner.step

    def interrupted(*args: Any) -> None:
        step(*args)
        raise KeyboardInterrupt

    inner.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    del inner.step
    optimizer.zero_grad()
    train(model, optimizer, range(1, 3), part, parts)
    return [outcome(model, optimizer)]


def test_momentum_of_an_interrupted_step_is_there() -> None:
    ((actual,), *_) = run_ranks(2, interrupt)
    model = network()
    optimizer = optimizer_for(model, "freeze", backend="native")
    train(model, optimizer, range(3))
    for ours, theirs in zip(actual["momentum"], outcome(model, optimizer)["momentum"], strict=True):
        torch.testing.assert_close(ours, theirs)


def write_beside_masters(rank: int, backend: str) -> list[bool]:
    """In place, and unseen with `refresh_norms`; a step with lr = 0 then leaves what was written."""
    kept = []
    for norms in ("track", "freeze"):
        for is_seen in (True, False):
            model = network().bfloat16()
            shard(model, "fully sharded")
            optimizer = ScaleAmendedSGD(model.parameters(), 1e-3, norms=norms, master_weights=True, backend=backend)
            for param in model.parameters():
                param.grad = torch.ones_like(param)
            for _ in range(2):
                optimizer.step()
            with torch.no_grad():
                for param in model.parameters():
                    (param if is_seen else param.data).mul_(0).add_(4)
            if not is_seen:
                optimizer.refresh_norms()
            optimizer.param_groups[0]["lr"] = 0.0
            optimizer.step()
            kept += [bool(local(param).eq(4).all()) for param in model.parameters()]
    return kept


@pytest.mark.parametrize("backend", backends(("native", "reference")))
def test_masters_take_over_what_is_written(backend: str) -> None:
    for kept in run_ranks(2, write_beside_masters, backend):
        assert all(kept)


def exchange_beside_a_write(rank: int) -> list[int]:
    """Two plain weights beside sharded ones: one is exchanged for a tensor that was written less, the other written."""
    model = network()
    shard(model, "fully sharded")
    first, second = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    params = [*model.parameters(), first, second]
    optimizer = ScaleAmendedSGD(params, lr=0.1, backend="native")
    for _ in range(3):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    first.grad = None
    other = torch.nn.Parameter(torch.ones(2, 2))
    writes = first._version - other._version
    torch.utils.swap_tensors(first, other)
    with torch.no_grad():
        for _ in range(writes):
            second.mul_(2.0)
    return [round(optimizer.layer_report()[-1].row_norm_sq), 2 * 4**writes]


def test_a_write_beside_an_exchange_of_parameters() -> None:
    for actual, expected in run_ranks(2, exchange_beside_a_write):
        assert actual == expected
