"""Runs one training script with ScaleAmendedSGD and with torch.optim.SGD, and compares what comes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import SGD, Optimizer

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import Case, assert_close

CASE = Case([(6, 5), (6,), (4, 3, 3, 3), (3, 4)])
MOMENTUM: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}
Script = Callable[[Optimizer, list[Parameter]], None]


def both(
    backend: str, script: Script, groups: Callable[[list[Parameter]], Any] = list, case: Case = CASE, **options: Any
) -> None:
    """Runs a script with ours, unamended, and with torch's optimizer; weights and momentum must be the same."""
    options = {**MOMENTUM, **options}
    theirs_options = copy.deepcopy(options)  # a learning rate that is a tensor is changed in place
    ours, theirs = case.params(), case.params()
    optimizer = ScaleAmendedSGD(unamended(groups(ours)), backend=backend, **options)
    expected = SGD(groups(theirs), foreach=False, fused=False, **theirs_options)
    script(optimizer, ours)
    script(expected, theirs)
    for place, (actual, want) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(actual, want, torch.float32, f"parameter {place}")
        mine, other = (o.state.get(p, {}).get("momentum_buffer") for o, p in ((optimizer, actual), (expected, want)))
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            assert_close(mine, other, torch.float32, f"momentum {place}")


def unamended(groups: Iterable[Any]) -> list[Any]:
    groups = list(groups)
    if not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    return [{**group, "amend": False} for group in groups]


def step(optimizer: Optimizer, params: list[Parameter], number: int) -> None:
    CASE.set_grads(params, number)
    optimizer.step()
