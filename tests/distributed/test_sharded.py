"""Sharded parameters, FSDP2 and tensor parallelism: every rank updates its parts as one process updates the whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sasgd_fused import ScaleAmendedSGD
from tests.distributed.ranks import run_ranks
from tests.distributed.sharded_runs import (
    RULES,
    backward,
    even_network,
    marks_of,
    needs_fsdp,
    network,
    optimizer_for,
    outcome,
    shard,
    train,
)
from tests.helpers import assert_close, backends, cpu_only
from tests.kernels.emulated_cuda import EMULATED_CUDA
from tests.tiers import thin

pytestmark = cpu_only("processes that talk through gloo")
STEPS = 4
LAYOUTS = [("fully sharded", 2), ("fully sharded", 4), ("hybrid", 4), ("tensor parallel", 2), ("both", 4)]


def network_for(layout: str) -> nn.Sequential:
    return even_network() if layout in ("tensor parallel", "both") else network()


def assert_outcome(actual: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    """To rounding: the sums over ranks, and over parts of a batch, have another order."""
    for key in ("weights", "momentum"):
        for index, (a, e) in enumerate(zip(actual[key], expected[key], strict=True)):
            assert_close(a, e, torch.float32, f"{what}, {key} {index}")
    for key in ("norms", "frozen norms", "gradient norms"):
        for a, e in zip(actual[key], expected[key], strict=True):
            assert a == pytest.approx(e, rel=1e-6) if e is not None else a is None, f"{what}, {key}"
    assert not any(actual["stale"]), what


def train_sharded(rank: int, layout: str, backend: str) -> list[dict[str, Any]]:
    outcomes = []
    for rule in RULES:
        model = network_for(layout)
        part, parts = shard(model, layout)
        optimizer = optimizer_for(model, rule, backend=backend)
        train(model, optimizer, range(STEPS), part, parts)
        for param in model.parameters():
            buffer = optimizer.state[param]["momentum_buffer"]
            assert type(buffer) is (type(param.data)), "it is sharded as its parameter is"
            assert getattr(buffer, "placements", None) == getattr(param, "placements", None)
        outcomes.append(outcome(model, optimizer))
    return outcomes


# What is sharded is the same for all backends; the slow ones run the layout that has everything.
CASES = [
    pytest.param(layout, ranks, *backend.values, marks=[*backend.marks, *marks_of(layout)])
    for layout, ranks in LAYOUTS
    for backend in backends()
    if layout == "both" or backend.values[0] in ("native", "foreach")
]


@thin(strength=1)
@pytest.mark.parametrize(("layout", "ranks", "backend"), CASES)
def test_ranks_do_what_one_process_does(layout: str, ranks: int, backend: str) -> None:
    first, *others = run_ranks(ranks, train_sharded, layout, backend)
    for rule, actual, *theirs in zip(RULES, first, *others, strict=True):
        for other in theirs:
            assert all(map(torch.equal, actual["weights"], other["weights"])), rule
            assert all(map(torch.equal, actual["momentum"], other["momentum"])), rule
            assert actual["norms"] == other["norms"], rule
        model = network_for(layout)
        optimizer = optimizer_for(model, rule, backend="reference")
        train(model, optimizer, range(STEPS))
        assert_outcome(actual, outcome(model, optimizer), rule)


def write_weights(model: nn.Module, optimizer: ScaleAmendedSGD) -> None:
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(1.25)


def refresh(model: nn.Module, optimizer: ScaleAmendedSGD) -> None:
    for param in model.parameters():
        param.data.mul_(1.25)
    optimizer.refresh_norms()


def load_weights(model: nn.Module, optimizer: ScaleAmendedSGD) -> None:
    model.load_state_dict({name: value * 1.25 for name, value in model.state_dict().items()})


def skip_a_step(model: nn.Module, optimizer: ScaleAmendedSGD) -> None:
    """An overflow that one rank alone has seen."""
    flag = dist.is_initialized() and dist.get_rank() > 0
    vars(optimizer)["found_inf"] = torch.tensor(float(flag or not dist.is_initialized()))
    optimizer.step()
    vars(optimizer)["found_inf"] = torch.zeros(())


def give_no_gradient(model: nn.Module, optimizer: ScaleAmendedSGD) -> None:
    """A parameter sits a step out; its norm does not."""
    backward(model, 7)
    next(model.parameters()).grad = None
    optimizer.step()


def copy_state(model: nn.Module, optimizer: ScaleAmendedSGD) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def lower(model: nn.Module, optimizer: ScaleAmendedSGD) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.5


EVENTS = [write_weights, refresh, load_weights, skip_a_step, give_no_gradient, copy_state, lower]
Event = Callable[[nn.Module, ScaleAmendedSGD], None]


def train_through(model: nn.Module, optimizer: ScaleAmendedSGD, event: Event, part: int = 0, parts: int = 1) -> None:
    if event is skip_a_step:
        backward(model, 0, part, parts)
        event(model, optimizer)
        assert not optimizer.state_dict()["state"], "a skipped step leaves no trace"
    train(model, optimizer, range(2), part, parts)
    event(model, optimizer)
    train(model, optimizer, range(2, 4), part, parts)


def train_through_events(rank: int, backend: str) -> list[dict[str, Any]]:
    outcomes = []
    for rule in RULES:
        for event in EVENTS:
            model = network()
            part, parts = shard(model, "fully sharded")
            optimizer = optimizer_for(model, rule, backend=backend)
            train_through(model, optimizer, event, part, parts)
            outcomes.append(outcome(model, optimizer))
    return outcomes


@needs_fsdp
@pytest.mark.parametrize("backend", backends(["native", "reference", EMULATED_CUDA]))
def test_what_happens_between_steps(backend: str) -> None:
    outcomes = run_ranks(2, train_through_events, backend)[0]
    cases = [(rule, event) for rule in RULES for event in EVENTS]
    for (rule, event), actual in zip(cases, outcomes, strict=True):
        model = network()
        optimizer = optimizer_for(model, rule, backend="reference")
        train_through(model, optimizer, event)
        assert_outcome(actual, outcome(model, optimizer), f"{rule}, {event.__name__}")


def in_part_sharded() -> nn.Sequential:
    """The layers in the middle alone; the others' parameters are plain, the same on all ranks."""
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model[2])
    return model


def train_in_part(rank: int, backend: str) -> list[dict[str, Any]]:
    outcomes = []
    for rule in RULES:
        model = in_part_sharded()
        optimizer = optimizer_for(model, rule, backend=backend)
        train(model, optimizer, range(2))
        refresh(model, optimizer)
        train(model, optimizer, range(2, 4))
        outcomes.append(outcome(model, optimizer))
    return outcomes


@needs_fsdp
@pytest.mark.parametrize("backend", backends(["native", "foreach"]))
def test_plain_parameters_beside_sharded_ones(backend: str) -> None:
    for actuals in run_ranks(2, train_in_part, backend):
        for rule, actual in zip(RULES, actuals, strict=True):
            model = network()
            optimizer = optimizer_for(model, rule, backend="reference")
            train(model, optimizer, range(2))
            refresh(model, optimizer)
            train(model, optimizer, range(2, 4))
            assert_outcome(actual, outcome(model, optimizer), rule)


def run_with(manner: str, model: nn.Module, part: int = 0, parts: int = 1) -> dict[str, Any]:
    optimizer = optimizer_for(model, "freeze")
    step: Callable[[], object] = optimizer.step
    if manner == "momentum later":
        for group in optimizer.param_groups:
            group["momentum"] = 0.0
    elif manner == "released":
        optimizer.release_gradients_in_backward()
    elif manner == "compiled":
        step = torch.compile(lambda: optimizer.step(), backend="eager")
    elif manner == "replaced":
        train(model, optimizer, range(1), part, parts)
        model.double().float()
    for number in range(3):
        optimizer.zero_grad()
        backward(model, number, part, parts)
        step()
        for group in optimizer.param_groups:
            group["momentum"] = 0.9
    return outcome(model, optimizer)


MANNERS = ["momentum later", "released", "compiled", "replaced"]


def run_manners(rank: int) -> list[dict[str, Any]]:
    outcomes = []
    for manner in MANNERS:
        model = network()
        outcomes.append(run_with(manner, model, *shard(model, "fully sharded")))
    return outcomes


@needs_fsdp
@pytest.mark.filterwarnings("ignore")  # of dynamo's
def test_manners_of_stepping() -> None:
    for actuals in run_ranks(2, run_manners):
        for manner, actual in zip(MANNERS, actuals, strict=True):
            assert_outcome(actual, run_with(manner, network()), manner)


def overflow_of_a_bias(rank: int) -> list[float]:
    """No layer is sharded, and one rank alone has seen the overflow."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    bias: Any = nn.Parameter(distribute_tensor(torch.ones(4), init_device_mesh("cpu", (2,)), [Shard(0)]))
    optimizer = ScaleAmendedSGD([bias], lr=0.1)
    bias.grad = torch.ones_like(bias)
    vars(optimizer)["found_inf"] = torch.tensor(float(rank))
    optimizer.step()
    skipped: list[float] = bias.full_tensor().tolist()
    return skipped


def test_an_overflow_on_one_rank_skips_the_step_on_all() -> None:
    assert run_ranks(2, overflow_of_a_bias) == [[1.0] * 4] * 2
