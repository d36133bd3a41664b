"""One model trained by several processes: DistributedDataParallel, and ZeroRedundancyOptimizer around the optimizer."""

from __future__ import annotations

import functools
import io
import os
import signal
import time
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sasgd_fused import ScaleAmendedSGD, parameter_groups, zero_redundancy_arguments
from tests.distributed.ranks import RankError, run_ranks
from tests.helpers import assert_close, cpu_only
from tests.unchanged import bits

pytestmark = cpu_only("processes that talk through gloo")

STEPS = 5
HYPERPARAMETERS: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}
RULES: dict[str, dict[str, Any]] = {
    "track": {},
    "freeze": {"norms": "freeze", "head": "plain", "decay": "shape"},
    "product": {"factors": "product"},
    "relative": {"scale": "relative"},
}
RANKS = [2, pytest.param(4, marks=pytest.mark.nightly)]
WRAPPERS: list[dict[str, Any]] = [{}, {"gradient_as_bucket_view": True}, {"static_graph": True}]


def network() -> nn.Sequential:
    """Without batch normalization, which would see a rank's part of the batch; smooth, so that rounding stays small."""
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(1, 6, 3, stride=2),
        nn.GroupNorm(2, 6),
        nn.SiLU(),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 9, 1),
        nn.SiLU(),
    ]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(9, 10), nn.SiLU(), nn.Linear(10, 5))


def train(model: nn.Module, optimizer: Optimizer, rank: int = 0, ranks: int = 1) -> None:
    """Steps on equal parts of one batch, the mean over which is the mean of theirs."""
    generator = torch.Generator().manual_seed(1)
    images, targets = (torch.randn(shape, generator=generator) for shape in ((16, 1, 8, 8), (16, 5)))
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(images.chunk(ranks)[rank]) - targets.chunk(ranks)[rank]).square().mean().backward()
        optimizer.step()


def optimizer_for(model: nn.Module, rule: str) -> ScaleAmendedSGD:
    return ScaleAmendedSGD(parameter_groups(model), **HYPERPARAMETERS, **RULES[rule])


def outcome(model: nn.Module, optimizer: ScaleAmendedSGD) -> dict[str, Any]:
    state = [optimizer.state[param] for param in model.parameters()]
    return {"weights": [param.detach() for param in model.parameters()], "state": state}


def to_the_bit(value: Any) -> Any:
    if isinstance(value, Tensor):
        return bits(value)
    if isinstance(value, dict):
        return {key: to_the_bit(item) for key, item in value.items()}
    return [to_the_bit(item) for item in value] if isinstance(value, (list, tuple)) else value


def train_in_parallel(rank: int) -> list[dict[str, Any]]:
    outcomes = []
    for rule in RULES:
        for wrapper in WRAPPERS:
            model = network()
            optimizer = optimizer_for(model, rule)
            train(DistributedDataParallel(model, **wrapper), optimizer, rank, dist.get_world_size())
            outcomes.append(outcome(model, optimizer))
    return outcomes


@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_have_the_same_weights_and_those_of_one_process(ranks: int) -> None:
    """To the bit among the ranks; to rounding beside one process, which sums a batch's gradients in another order."""
    first, *others = run_ranks(ranks, train_in_parallel)
    for other in others:
        assert to_the_bit(other) == to_the_bit(first)
    cases = [(rule, wrapper) for rule in RULES for wrapper in WRAPPERS]
    for (rule, wrapper), actual in zip(cases, first, strict=True):
        model = network()
        optimizer = optimizer_for(model, rule)
        train(model, optimizer)
        expected = outcome(model, optimizer)
        names = [f"{rule}, {wrapper}, {name}" for name, _ in model.named_parameters()]
        for name, a, e in zip(names, actual["weights"], expected["weights"], strict=True):
            assert_close(a, e, torch.float32, name)
        for name, a, e in zip(names, actual["state"], expected["state"], strict=True):
            assert a.keys() == e.keys(), name
            assert a.get("row_norm_sq") == e.get("row_norm_sq"), name
            assert_close(a["momentum_buffer"], e["momentum_buffer"], torch.float32, name)


def train_sharded(rank: int, rule: str) -> dict[str, list[Tensor]]:
    """The weights of a run with a sharded optimizer, of runs that go on from its checkpoint, and of one without it."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its import warns of torch's own torch.jit

    def begin(sharded: bool) -> tuple[nn.Module, Any]:
        model = network()
        arguments = zero_redundancy_arguments(model, **RULES[rule])
        if sharded:
            return model, ZeroRedundancyOptimizer(**arguments, **HYPERPARAMETERS)
        return model, arguments["optimizer_class"](arguments["params"], **HYPERPARAMETERS)

    def go_on(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
        train(DistributedDataParallel(model), optimizer, rank, dist.get_world_size())
        return [param.detach().clone() for param in model.parameters()]

    weights = {}
    whole = network()
    optimizer = optimizer_for(whole, rule)
    go_on(whole, optimizer)
    weights["not sharded"] = go_on(whole, optimizer)

    model, optimizer = begin(sharded=True)
    go_on(model, optimizer)
    optimizer.consolidate_state_dict(to=0)
    file = io.BytesIO()
    if rank == 0:
        torch.save([model.state_dict(), optimizer.state_dict()], file)
    sent = [file.getvalue()]
    dist.broadcast_object_list(sent, src=0)
    weights["sharded"] = go_on(model, optimizer)

    for sharded in (True, False):
        model, optimizer = begin(sharded)
        saved_model, saved_optimizer = torch.load(io.BytesIO(sent[0]), weights_only=True)
        model.load_state_dict(saved_model)
        optimizer.load_state_dict(saved_optimizer)
        weights[f"resumed, sharded: {sharded}"] = go_on(model, optimizer)
    return weights


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("rule", RULES)
def test_a_sharded_optimizer_does_the_same(rule: str, ranks: int) -> None:
    """To the bit, and its checkpoint goes on to the bit, sharded or not."""
    outcomes = [to_the_bit(weights) for weights in run_ranks(ranks, train_sharded, rule)]
    expected = outcomes[0]["not sharded"]
    for rank, outcome_of_rank in enumerate(outcomes):
        for run, weights in outcome_of_rank.items():
            assert weights == expected, f"rank {rank}, {run}"


def sum_of_ranks(rank: int, summand: int) -> tuple[int, Tensor]:
    """The last rank is done first."""
    total = torch.tensor([rank + summand])
    dist.all_reduce(total)
    time.sleep(0.2 * (dist.get_world_size() - rank))
    return rank, total


def test_results_come_in_the_order_of_the_ranks() -> None:
    assert run_ranks(3, sum_of_ranks, 10) == [(rank, torch.tensor([33])) for rank in range(3)]


def raise_on_one(rank: int) -> None:
    if rank == 1:
        raise ArithmeticError("of rank 1")
    dist.barrier()


def test_a_rank_that_raises_ends_the_run() -> None:
    with pytest.raises(RankError, match=r"rank 1 raised(\n.*)+ in raise_on_one(\n.*)+ArithmeticError: of rank 1"):
        run_ranks(2, raise_on_one)


def die_on_one(rank: int, status: int | None) -> None:
    dist.barrier()
    if rank == 1 and status is None:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and status is not None:
        os._exit(status)
    if rank == 2:
        time.sleep(600)
    else:
        dist.barrier()


@pytest.mark.parametrize(("status", "death"), [(None, "was killed by SIGKILL"), (7, "ended with exit status 7")])
def test_a_rank_that_dies_ends_the_run_for_those_that_wait_for_it(status: int | None, death: str) -> None:
    """Also for one that does not notice, which would return if it were left alone."""
    with pytest.raises(RankError, match=rf"rank 1 {death}.*\nrank 2 was still running"):
        run_ranks(3, die_on_one, status)


def never_return(rank: int) -> None:
    time.sleep(600)


def test_a_run_that_takes_too_long_is_ended() -> None:
    with pytest.raises(RankError, match="rank 0 was still running, and was stopped\nrank 1 was still running"):
        run_ranks(2, never_return, seconds=1)


def hand_over(rank: int) -> list[str]:
    """The class itself, and then what is prepared from the whole model."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    told = []
    model = network()
    for arguments in (
        {"params": model.parameters(), "optimizer_class": ScaleAmendedSGD},
        {"params": model.parameters(), "optimizer_class": functools.partial(ScaleAmendedSGD, head="plain")},
        zero_redundancy_arguments(model, head="plain"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ZeroRedundancyOptimizer(**arguments, lr=0.1)
        told.append(" ".join(str(warning.message) for warning in caught))
    return told


def test_zero_over_the_class_itself_warns() -> None:
    for told in run_ranks(2, hand_over):
        assert ["want **zero_redundancy_arguments(model)" in text for text in told] == [True, True, False]
