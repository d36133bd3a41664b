"""Checkpoints of sharded parameters by torch.distributed.checkpoint: onto other numbers of ranks, and from SGD."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from tests.distributed.ranks import run_ranks
from tests.distributed.sharded_runs import (
    HYPERPARAMETERS,
    RULES,
    needs_fsdp,
    network,
    optimizer_for,
    outcome,
    shard,
    train,
)
from tests.helpers import assert_close, cpu_only

pytestmark = [cpu_only("processes that talk through gloo"), needs_fsdp]
WHOLE = 0  # ranks of a run whose parameters are not sharded
OTHERS = [pytest.param(*ranks, marks=pytest.mark.nightly) for ranks in ((4, 2), (WHOLE, WHOLE))]


def begun(rule: str, sharded: bool, seed: float) -> tuple[nn.Module, Any, tuple[int, int]]:
    model = network()
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(seed)
    parts = shard(model, "fully sharded") if sharded else (0, 1)
    return model, optimizer_for(model, rule), parts


def states_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


def save_runs(rank: int, folder: Path, sharded: bool) -> list[dict[str, Any]]:
    """Writes a checkpoint of each rule after two steps; returns what two more steps lead to."""
    from torch.distributed.checkpoint.state_dict_saver import save

    outcomes = []
    for rule in RULES:
        model, optimizer, parts = begun(rule, sharded, 1.0)
        train(model, optimizer, range(2), *parts)
        save(states_of(model, optimizer), checkpoint_id=folder / rule)
        train(model, optimizer, range(2, 4), *parts)
        outcomes.append(outcome(model, optimizer))
    return outcomes


def load_runs(rank: int, folder: Path, sharded: bool) -> list[dict[str, Any]]:
    """Takes the two steps more from the checkpoint, in an optimizer that has had other weights."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    outcomes = []
    for rule in RULES:
        model, optimizer, parts = begun(rule, sharded, 1.5)
        states = states_of(model, optimizer)
        load(states, checkpoint_id=folder / rule)
        set_model_state_dict(model, states["model"])
        set_optimizer_state_dict(model, optimizer, states["optimizer"])
        train(model, optimizer, range(2, 4), *parts)
        outcomes.append(outcome(model, optimizer))
    return outcomes


@pytest.mark.parametrize(("saved_on", "loaded_on"), [(2, 2), (2, 4), (2, WHOLE), (WHOLE, 2), *OTHERS])
def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path, saved_on: int, loaded_on: int) -> None:
    """To the bit on as many ranks; to rounding on others."""
    expected = run_ranks(saved_on or 1, save_runs, tmp_path, saved_on != WHOLE)[0]
    loaded = run_ranks(loaded_on or 1, load_runs, tmp_path, loaded_on != WHOLE)[0]
    for rule, ours, theirs in zip(RULES, loaded, expected, strict=True):
        for key in ("weights", "momentum"):
            for a, e in zip(ours[key], theirs[key], strict=True):
                if saved_on == loaded_on:
                    assert torch.equal(a, e), f"{rule}, {key}"
                else:
                    assert_close(a, e, torch.float32, f"{rule}, {key}")
        assert ours["frozen norms"] == theirs["frozen norms"], rule
        for a, e in zip(ours["gradient norms"], theirs["gradient norms"], strict=True):
            assert a == (e if saved_on == loaded_on or e is None else pytest.approx(e, rel=1e-6)), rule


def save_of_sgd(rank: int, folder: Path) -> list[torch.Tensor]:
    from torch.distributed.checkpoint.state_dict_saver import save

    model = network()
    parts = shard(model, "fully sharded")
    optimizer = SGD(model.parameters(), **HYPERPARAMETERS)
    train(model, optimizer, range(2), *parts)
    save(states_of(model, optimizer), checkpoint_id=folder)
    return [optimizer.state[param]["momentum_buffer"].full_tensor() for param in model.parameters()]


def load_of_sgd(rank: int, folder: Path, rule: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its momentum is taken over; what it lacks stays as the optimizer was made with."""
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    from sasgd_fused import ScaleAmendedSGD

    model = network()
    parts = shard(model, "fully sharded")
    optimizer = ScaleAmendedSGD(model.parameters(), **HYPERPARAMETERS, **RULES[rule])
    states = states_of(model, optimizer)
    load(states, checkpoint_id=folder, planner=DefaultLoadPlanner(allow_partial_load=True))
    set_model_state_dict(model, states["model"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_optimizer_state_dict(model, optimizer, states["optimizer"])
    loaded = outcome(model, optimizer)
    train(model, optimizer, range(2, 3), *parts)
    return loaded, outcome(model, optimizer)


@pytest.mark.parametrize("rule", ["track", "freeze"])
def test_a_checkpoint_of_sgd(tmp_path: Path, rule: str) -> None:
    expected = run_ranks(2, save_of_sgd, tmp_path)[0]
    loaded, stepped = run_ranks(2, load_of_sgd, tmp_path, rule)[0]
    for ours, theirs in zip(loaded["momentum"], expected, strict=True):
        assert torch.equal(ours, theirs)
    norms = [norm for norm in stepped["frozen norms"] if norm is not None]
    assert len(norms) == (2 if rule == "freeze" else 0) and all(norm > 0 for norm in norms)
