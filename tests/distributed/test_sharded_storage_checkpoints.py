"""Checkpoints of sharded masters and 16-bit momentum: exact, and the random numbers go on where they were."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sasgd_fused import ScaleAmendedSGD
from tests.distributed.ranks import run_ranks
from tests.distributed.sharded_runs import needs_fsdp, shard
from tests.helpers import assert_close, cpu_only
from tests.storage_cases import (
    NEAREST,
    STORAGE,
    kept_keys,
    model_for,
    momentum_dtype,
    optimizer_for,
    outcome,
    to_the_bit,
    train,
)

pytestmark = [cpu_only("processes that talk through gloo"), needs_fsdp]
WHOLE = 0  # ranks of a run whose parameters are not sharded


def begun(storage: str, sharded: bool, factor: float) -> tuple[nn.Module, ScaleAmendedSGD]:
    model = model_for(storage)
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(factor)
    if sharded:
        shard(model, "fully sharded")
    return model, optimizer_for(model, storage)


def states_of(model: nn.Module, optimizer: ScaleAmendedSGD, **options: bool) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

    manner = StateDictOptions(**options)
    return {
        "model": get_model_state_dict(model, options=manner),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=manner),
    }


def take(model: nn.Module, optimizer: ScaleAmendedSGD, states: dict[str, Any], **options: bool) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

    manner = StateDictOptions(**options)
    set_model_state_dict(model, states["model"], options=manner)
    set_optimizer_state_dict(model, optimizer, states["optimizer"], options=manner)


def save_runs(rank: int, folder: Path, sharded: bool) -> dict[str, Any]:
    """Writes a checkpoint of each storage after two steps; returns what was there, and what two more lead to."""
    from torch.distributed.checkpoint.state_dict_saver import save

    outcomes = {}
    for storage in STORAGE:
        model, optimizer = begun(storage, sharded, 1.0)
        train(model, optimizer, range(2))
        save(states_of(model, optimizer), checkpoint_id=folder / storage)
        saved = outcome(model, optimizer)
        train(model, optimizer, range(2, 4))
        outcomes[storage] = saved, outcome(model, optimizer)
    return outcomes


def load_runs(rank: int, folder: Path, sharded: bool) -> dict[str, Any]:
    """The same from the checkpoint, in an optimizer that has had other weights."""
    from torch.distributed.checkpoint.state_dict_loader import load

    outcomes = {}
    for storage in STORAGE:
        model, optimizer = begun(storage, sharded, 1.5)
        train(model, optimizer, range(1))
        states = states_of(model, optimizer)
        load(states, checkpoint_id=folder / storage)
        take(model, optimizer, states)
        loaded = outcome(model, optimizer)
        train(model, optimizer, range(2, 4))
        outcomes[storage] = loaded, outcome(model, optimizer)
    return outcomes


@pytest.fixture(scope="module")
def saved_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, dict[str, Any]]]:
    """Checkpoints that so many ranks have written, and what their runs led to."""

    @cache
    def save_on(ranks: int) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(f"saved_on_{ranks}")
        return folder, run_ranks(ranks or 1, save_runs, folder, ranks != WHOLE)[0]

    return save_on


@pytest.mark.parametrize(("saved_on", "loaded_on"), [(2, 2), (2, 4), (2, WHOLE), (WHOLE, 2)])
def test_a_run_goes_on_from_its_checkpoint(saved_runs: Any, saved_on: int, loaded_on: int) -> None:
    """What is loaded is to the bit what was saved, and on as many ranks so is what it leads to.

    On others it is that to rounding, unless it is stochastic: other parts draw other random numbers.
    """
    folder, saved = saved_runs(saved_on)
    loaded = run_ranks(loaded_on or 1, load_runs, folder, loaded_on != WHOLE)[0]
    for storage in STORAGE:
        (before, after), (at_first, ended) = saved[storage], loaded[storage]
        assert all(list(state) and set(state) == set(kept_keys(storage)) for state in at_first[1])
        assert to_the_bit(*at_first) == to_the_bit(*before), storage
        assert storage in NEAREST or [state["rounding_step"] for state in at_first[1]] == [2] * len(at_first[1])
        if saved_on == loaded_on:
            assert to_the_bit(*ended) == to_the_bit(*after), storage
        elif storage in NEAREST:
            for a, e in zip(ended[0], after[0], strict=True):
                assert_close(a, e, momentum_dtype(storage) if a.dtype == torch.float32 else a.dtype, storage)
        assert to_the_bit(*ended) != to_the_bit(*at_first), storage


def through_one_rank(rank: int) -> list[bool]:
    """Everything is gathered on the first rank, and dealt out from there."""
    same = []
    for storage in STORAGE:
        model, optimizer = begun(storage, True, 1.0)
        train(model, optimizer, range(2))
        states = states_of(model, optimizer, full_state_dict=True, cpu_offload=True)
        twin, other = begun(storage, True, 1.5)
        take(twin, other, states, full_state_dict=True, broadcast_from_rank0=True)
        same.append(to_the_bit(*outcome(twin, other)) == to_the_bit(*outcome(model, optimizer)))
        for each, stepping in ((model, optimizer), (twin, other)):
            train(each, stepping, range(2, 4))
        same.append(to_the_bit(*outcome(twin, other)) == to_the_bit(*outcome(model, optimizer)))
    return same


def test_a_checkpoint_gathered_on_one_rank() -> None:
    assert run_ranks(2, through_one_rank) == [[True] * 2 * len(STORAGE)] * 2
