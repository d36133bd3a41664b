"""Sharded parameters with masters, small momentum, stochastic rounding: parts of their own, copies that are equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sasgd_fused import ScaleAmendedSGD
from tests.distributed.ranks import run_ranks
from tests.distributed.sharded_runs import marks_of, needs_fsdp, shard
from tests.helpers import assert_close, backends, cpu_only
from tests.kernels.emulated_cuda import EMULATED_CUDA
from tests.kernels.emulated_runs import give_scaler
from tests.storage_cases import (
    NEAREST,
    STOCHASTIC,
    STORAGE,
    give_gradients,
    kept_keys,
    model_for,
    momentum_dtype,
    optimizer_for,
    outcome,
    to_the_bit,
    train,
)

pytestmark = cpu_only("processes that talk through gloo")
STEPS = 3
LAYOUTS = [("fully sharded", 2), ("hybrid", 4), ("tensor parallel", 2), ("both", 4)]
CASES = [
    pytest.param(layout, ranks, *backend.values, marks=[*backend.marks, *marks_of(layout)])
    for layout, ranks in LAYOUTS
    for backend in backends(["native", "foreach", EMULATED_CUDA])
    if backend.values[0] == "native" or layout == "fully sharded"
]


def write(model: nn.Module, optimizer: ScaleAmendedSGD) -> None:
    """Into some of the elements, through the DTensor."""
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(torch.where(param > 0, 1.5, 1.0))


def write_unseen(model: nn.Module, optimizer: ScaleAmendedSGD) -> None:
    for param in model.parameters():
        param.data.mul_(1.5)
    optimizer.refresh_norms()


def overflow(model: nn.Module, optimizer: ScaleAmendedSGD) -> None:
    """That is in some of the parts alone, and in their copies."""
    give_gradients(model, 100)
    is_seen = not dist.is_initialized() or dist.get_rank() % 2 == 1
    give_scaler(optimizer, torch.tensor(float(is_seen)))
    optimizer.step()
    give_scaler(optimizer, torch.zeros(()))


EVENTS = [write, write_unseen, overflow]


def check_parts(model: nn.Module, optimizer: ScaleAmendedSGD, storage: str) -> None:
    """What the state has of each parameter is dealt out as the parameter is."""
    optimizer.state_dict()
    dtypes = {"master_weight": torch.float32, "momentum_buffer": momentum_dtype(storage)}
    for param in model.parameters():
        state = optimizer.state[param]
        local: Any = getattr(param, "_local_tensor", param)
        assert set(state) == set(kept_keys(storage)) - (set() if local.numel() else {"rounding_step"})
        for key in state.keys() - {"rounding_step"}:
            assert type(state[key]) is type(param.data)
            assert getattr(state[key], "placements", None) == getattr(param, "placements", None)
            assert state[key].shape == param.shape
            assert state[key].dtype == dtypes[key]
            assert getattr(state[key], "_local_tensor", state[key]).shape == local.shape


def train_sharded(rank: int, layout: str, backend: str) -> dict[str, Any]:
    outcomes: dict[str, Any] = {}
    for storage in STORAGE:
        model = model_for(storage, layout)
        shard(model, layout)
        optimizer = optimizer_for(model, storage, backend=backend)
        train(model, optimizer, range(1))
        outcomes[storage, "one step"] = outcome(model, optimizer)
        train(model, optimizer, range(1, STEPS))
        check_parts(model, optimizer, storage)
        outcomes[storage, "some steps"] = outcome(model, optimizer)
    for event in EVENTS:
        model = model_for("masters", layout)
        shard(model, layout)
        optimizer = optimizer_for(model, "masters", backend=backend)
        if event is overflow:
            event(model, optimizer)
            assert not optimizer.state_dict()["state"], "a skipped step leaves no trace"
        train(model, optimizer, range(2))
        event(model, optimizer)
        train(model, optimizer, range(2, 4))
        outcomes["masters", event.__name__] = outcome(model, optimizer)
    return outcomes


def train_whole(layout: str, storage: str, name: str) -> tuple[list[Tensor], list[dict[str, Any]]]:
    model = model_for(storage, layout)
    optimizer = optimizer_for(model, storage, backend="reference")
    train(model, optimizer, range({"one step": 1, "some steps": STEPS}.get(name, 2)))
    for event in EVENTS:
        if event.__name__ == name:
            event(model, optimizer)
            train(model, optimizer, range(2, 4))
    return outcome(model, optimizer)


def assert_outcome(actual: Any, expected: Any, storage: str, what: str) -> None:
    """Within the table's tolerance for what is rounded most coarsely on the way."""
    coarsest = momentum_dtype(storage)
    for index, (a, e) in enumerate(zip(actual[0], expected[0], strict=True)):
        assert_close(a, e, torch.bfloat16 if coarsest == torch.bfloat16 else a.dtype, f"{what}, weight {index}")
    for index, (ours, theirs) in enumerate(zip(actual[1], expected[1], strict=True)):
        for key in kept_keys(storage):
            if key == "rounding_step":
                assert ours[key] == theirs[key], what
            else:
                assert_close(ours[key], theirs[key], coarsest, f"{what}, {key} {index}")


@pytest.mark.parametrize(("layout", "ranks", "backend"), CASES)
def test_ranks_do_what_one_process_does(layout: str, ranks: int, backend: str) -> None:
    """Also after writes into the parameters; and all ranks have the same to the bit, copies included.

    Rounded stochastically, two runs stay side by side for one step: either neighbour of a number may be taken.
    """
    first, *others = run_ranks(ranks, train_sharded, layout, backend)
    for (storage, name), actual in first.items():
        for other in others:
            weights, states = other[storage, name]
            for state, known in zip(states, actual[1], strict=True):
                state.setdefault("rounding_step", known.get("rounding_step"))  # of an empty part there is none
                known.setdefault("rounding_step", None)
            assert to_the_bit(weights, states) == to_the_bit(*actual), (storage, name)
        if storage in NEAREST or name == "one step":
            assert_outcome(actual, train_whole(layout, storage, name), storage, f"{storage}, {name}")


# How many ranks, the mesh they form, and over which of its dimensions the parameter's are dealt out.
PLACEMENTS: dict[str, tuple[int, tuple[int, ...], tuple[int | None, ...]]] = {
    "copies": (2, (2,), (None,)),
    "parts": (2, (2,), (0,)),
    "copies of parts": (4, (2, 2), (None, 0)),
    "parts of parts": (4, (2, 2), (0, 1)),
}


def draw(rank: int, placement: str | None) -> list[list[float]]:
    """What becomes of this rank's part where every element is the same: for each storage after one step and two."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    drawn = []
    for storage in STOCHASTIC:
        values = torch.ones(8, 64, dtype=STORAGE[storage][0])
        if placement:
            _, mesh, dims = PLACEMENTS[placement]
            placements = [Replicate() if dim is None else Shard(dim) for dim in dims]
            values = distribute_tensor(values, init_device_mesh("cpu", mesh), placements)
        param: Any = nn.Parameter(values)
        group = {"params": [param], "amend": False, "weight_decay": 0.3}  # by which numbers lie between two of 16 bits
        optimizer = ScaleAmendedSGD([group], lr=0.01, momentum=0.9, **STORAGE[storage][1])
        for _ in range(2):
            param.grad = torch.ones_like(param)
            optimizer.step()
            kept = param if storage == "stochastic weights" else optimizer.state[param]["momentum_buffer"]
            drawn.append(getattr(kept, "_local_tensor", kept).detach().float().flatten().tolist())
    return drawn


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_parts_draw_random_numbers_of_their_own_and_copies_the_same(placement: str) -> None:
    """Those of the first part, and of copies, are what a single process draws."""
    count, mesh, dims = PLACEMENTS[placement]
    drawn = run_ranks(count, draw, placement)
    places = [divmod(rank, 2) if len(mesh) == 2 else (rank,) for rank in range(count)]
    parts = [tuple(place for place, dim in zip(at, dims, strict=True) if dim is not None) for at in places]
    for of_ranks in zip(*drawn, strict=True):
        for part, numbers in zip(parts, of_ranks, strict=True):
            assert len(set(numbers)) > 1, "both neighbours are taken"
            assert [numbers == other for other in of_ranks] == [part == other for other in parts]
    if 1 not in dims:  # where memory goes on, the first part's places are the whole's
        whole_draw = draw(0, None)
        assert drawn[0] == [numbers[: len(of_part)] for numbers, of_part in zip(whole_draw, drawn[0], strict=True)]


def train_in_manners(rank: int, storage: str) -> list[Any]:
    """With gradients from autograd."""
    outcomes = []
    for manner in ("plain", "released", "compiled"):
        model = model_for(storage)
        shard(model, "fully sharded")
        optimizer = optimizer_for(model, storage)
        step: Callable[[], object] = optimizer.step
        if manner == "released":
            optimizer.release_gradients_in_backward()
        elif manner == "compiled":
            step = torch.compile(lambda: optimizer.step(), backend="eager")  # noqa: B023
        for number in range(3):
            optimizer.zero_grad()
            inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(number)).to(STORAGE[storage][0])
            model(inputs).float().square().mean().backward()
            step()
        outcomes.append(to_the_bit(*outcome(model, optimizer)))
    return outcomes


@needs_fsdp
@pytest.mark.filterwarnings("ignore")  # of dynamo's
@pytest.mark.parametrize("storage", [pytest.param("stochastic weights", marks=pytest.mark.nightly), "all"])
def test_manners_of_stepping(storage: str) -> None:
    """To the bit: released in backward, and compiled."""
    for plain, *others in run_ranks(2, train_in_manners, storage):
        assert others == [plain] * 2
