"""Runs on a GPU whose gradients are there beforehand, so that nothing but the step is in the way of the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import Case, states_of

SHAPES = [(64, 3, 3, 3), (64,), (130, 257), (0, 4), (), (10, 130)]
TRACK = {"lr": 1e-4, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}
FREEZE = {**TRACK, "norms": "freeze", "head": "plain", "decay": "shape"}
# About a second, in which the host can queue far more steps than any test takes.
LONG = 2_000_000_000


def gradients(case: Case, steps: int) -> list[list[Tensor]]:
    """The gradients of each step, as `Case.run` has them."""
    params = case.params()
    of_steps = []
    for step in range(steps):
        case.set_grads(params, step)
        of_steps.append([param.grad for param in params if param.grad is not None])
    return of_steps


def give(params: Sequence[Parameter], grads: Sequence[Tensor]) -> None:
    """Sets the gradients."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def fixed_grads(params: Sequence[Parameter]) -> Callable[[Sequence[Tensor]], None]:
    """Gives each parameter a gradient that stays in its place; returns what writes values there."""
    places = [torch.zeros_like(param) for param in params]
    give(params, places)

    def write(grads: Sequence[Tensor]) -> None:
        for place, grad in zip(places, grads, strict=True):
            place.copy_(grad)

    return write


@contextmanager
def busy_device() -> Iterator[None]:
    """Keeps the current stream busy until after the body, and fails if the body waited for it."""
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    yield
    assert not torch.cuda.current_stream().query(), "the host has waited for the device"
    torch.cuda.synchronize()


@contextmanager
def torch_sees_no_waiting() -> Iterator[None]:
    """Has torch raise where it waits for the device itself."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_same_bits(
    params: Sequence[Parameter], optimizer: ScaleAmendedSGD, expected: Sequence[Parameter], other: ScaleAmendedSGD
) -> None:
    """Holds weights, momentum and the report, with norms and stale steps, of two runs against each other."""
    assert all(bool(param.isfinite().all()) for param in expected)  # not-a-number would differ from itself
    for index, (ours, theirs) in enumerate(zip(params, expected, strict=True)):
        assert torch.equal(ours, theirs), f"parameter {index}"
    for index, (mine, yours) in enumerate(zip(states_of(optimizer, params), states_of(other, expected), strict=True)):
        assert mine.keys() == yours.keys(), f"state of parameter {index}"
        for key, value in mine.items():
            same = torch.equal(value, yours[key]) if isinstance(value, Tensor) else value == yours[key]
            assert same, f"{key} of parameter {index}"
    assert optimizer.layer_report() == other.layer_report()
