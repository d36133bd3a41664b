"""Masters and stochastic rounding in a CUDA graph: the device counts replays, and what a graph cannot do is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import cpu_only, states_of
from tests.kernels.emulated_cuda import EMULATED_CUDA
from tests.kernels.emulated_runs import captured, give_scaler
from tests.storage_cases import BF16, STORAGE, case_of, to_the_bit
from tests.unchanged import bits, nothing_changes

pytestmark = cpu_only("what a device does is emulated")
STREAM = 5


@pytest.mark.parametrize("storage", STORAGE)
def test_replays_are_steps(emulation: ModuleType, storage: str) -> None:
    """To the bit, with overflows between them and steps outside of the graph; each finds its count in the state."""
    case = case_of(storage)
    params, optimizer = case.run(EMULATED_CUDA, 2)
    found_inf = torch.zeros(())
    give_scaler(optimizer, found_inf)
    case.set_grads(params, 2)
    with captured(emulation, STREAM):
        optimizer.step()
    assert to_the_bit(params, states_of(optimizer, params)) == after_steps(storage, 2), "a capture is no step"

    def give(step: int) -> None:
        values = case.params()
        case.set_grads(values, step)
        for param, value in zip(params, values, strict=True):
            assert param.grad is not None and value.grad is not None
            param.grad.copy_(value.grad)

    for overflow, step in ((0, 2), (1, 3), (0, 3), (1, 4), (0, 4)):
        give(step)
        found_inf.fill_(overflow)
        emulation.replay(STREAM)
        assert to_the_bit(params, states_of(optimizer, params)) == after_steps(storage, step + 1 - overflow)
    give(5)
    optimizer.step()
    give(6)
    emulation.replay(STREAM)
    assert to_the_bit(params, states_of(optimizer, params)) == after_steps(storage, 7)
    assert not any(row.stale_steps for row in optimizer.layer_report())


def after_steps(storage: str, steps: int) -> list[Any]:
    params, optimizer = case_of(storage).run(EMULATED_CUDA, steps)
    return to_the_bit(params, states_of(optimizer, params))


def test_every_replay_draws_new_random_numbers(emulation: ModuleType) -> None:
    """From the same weights and gradients."""
    param = Parameter(torch.ones(4, 64, dtype=BF16))
    optimizer = ScaleAmendedSGD(
        [{"params": [param], "amend": False}], lr=0.01, rounding="stochastic", backend=EMULATED_CUDA
    )
    param.grad = torch.full_like(param, 0.3)
    optimizer.step()
    with captured(emulation, STREAM):
        optimizer.step()
    drawn: list[list[int]] = []
    for _ in range(3):
        with torch.no_grad():
            param.fill_(1.0)
        emulation.replay(STREAM)
        assert len(param.unique()) == 2, "both neighbours are taken"
        assert bits(param) not in drawn
        drawn.append(bits(param))
    assert optimizer.state_dict()["state"][0]["rounding_step"] == 4


def leave(params: list[Parameter], optimizer: ScaleAmendedSGD) -> None:
    pass


def write(params: list[Parameter], optimizer: ScaleAmendedSGD) -> None:
    with torch.no_grad():
        params[0].mul_(2)


def replace_master(params: list[Parameter], optimizer: ScaleAmendedSGD) -> None:
    state = optimizer.state[params[0]]
    state["master_weight"] = state["master_weight"].clone()


def set_count(params: list[Parameter], optimizer: ScaleAmendedSGD) -> None:
    optimizer.state[params[0]]["rounding_step"] = 40


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("storage", "steps", "event"),
    [
        ("masters", 0, leave),
        ("masters, float16", 0, leave),
        ("masters", 2, write),
        ("masters", 2, replace_master),
        ("stochastic weights", 2, set_count),
    ],
)
def test_what_a_graph_cannot_do_is_refused(
    emulation: ModuleType, storage: str, steps: int, event: Callable[..., None], momentum: float
) -> None:
    """It says what to do, changes nothing, and after a step outside there is a graph whose replays are right."""
    runs: list[list[Any]] = []
    for in_graph in (True, False):
        case = case_of(storage)
        case.options["momentum"] = momentum
        case.options["dampening"] = 0.0
        params, optimizer = case.run(EMULATED_CUDA, steps)
        event(params, optimizer)
        case.set_grads(params, steps)
        if in_graph:
            with nothing_changes(optimizer):
                refuse_capture(emulation, optimizer)
        optimizer.step()
        if in_graph:
            with captured(emulation, STREAM):
                optimizer.step()
            emulation.replay(STREAM)
        else:
            optimizer.step()
        runs.append(to_the_bit(params, states_of(optimizer, params)))
    assert runs[0] == runs[1]


def refuse_capture(emulation: ModuleType, optimizer: ScaleAmendedSGD) -> None:
    with captured(emulation, STREAM), pytest.raises(RuntimeError, match=r"CUDA graph: .*take a step before the captur"):
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("norms", ["track", "freeze"])
@pytest.mark.parametrize("storage", STORAGE)
def test_one_step_and_a_checkpoint_before_the_capture_are_enough(
    emulation: ModuleType, storage: str, norms: str, momentum: float
) -> None:
    """Whatever the checkpoint brought into the state."""
    case = case_of(storage)
    case.options.update(momentum=momentum, norms=norms)
    params, optimizer = case.run(EMULATED_CUDA, 1)
    optimizer.state_dict()
    case.set_grads(params, 1)
    with captured(emulation, STREAM):
        optimizer.step()
    emulation.replay(STREAM)
    expected, other = case.run(EMULATED_CUDA, 2)
    assert to_the_bit(params, states_of(optimizer, params)) == to_the_bit(expected, states_of(other, expected))


def test_what_a_graph_writes_stays_where_it_is(emulation: ModuleType) -> None:
    """A checkpoint and a report between replays leave masters, momentum and counts in their places."""
    case = case_of("all")
    params, optimizer = case.run(EMULATED_CUDA, 1)
    case.set_grads(params, 1)
    with captured(emulation, STREAM):
        optimizer.step()

    def places() -> list[int]:
        states = (optimizer.state[param] for param in params)
        return [value.data_ptr() for state in states for value in state.values() if isinstance(value, Tensor)]

    before = places()
    for count in (2, 3):
        emulation.replay(STREAM)
        optimizer.layer_report()
        assert [state.get("rounding_step") for state in states_of(optimizer, params)] == [
            count if param.numel() else None for param in params
        ]
    assert places() == before
