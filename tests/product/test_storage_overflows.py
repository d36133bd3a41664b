"""With masters, small momentum and stochastic rounding too, a step that a GradScaler skips leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, backends, skips_on_device, states_of
from tests.kernels.emulated_runs import give_scaler
from tests.storage_cases import STORAGE, case_of, to_the_bit
from tests.tiers import thin
from tests.unchanged import bits, nothing_changes


def outcome(optimizer: ScaleAmendedSGD, params: list[Any]) -> list[Any]:
    return to_the_bit(params, states_of(optimizer, params))


def step(optimizer: ScaleAmendedSGD, overflow: bool) -> None:
    """With what a GradScaler sets, which here looks at nothing itself: some versions of torch's cannot for bfloat16."""
    give_scaler(optimizer, torch.full((), float(overflow), device=DEVICE), torch.ones((), device=DEVICE))
    optimizer.step()
    del vars(optimizer)["grad_scale"], vars(optimizer)["found_inf"]


@thin(slow=1)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("overflows", [(0,), (0, 1, 3), (4, 5)], ids=str)
def test_a_run_is_the_run_without_overflows(overflows: tuple[int, ...], storage: str, backend: str) -> None:
    """To the bit: no momentum, no random number and no write into a master comes of the skipped steps."""
    case = case_of(storage)
    params = case.params()
    optimizer = case.optimizer(params, backend)
    good = 0
    for attempt in range(6):
        case.set_grads(params, 100 + attempt if attempt in overflows else good)
        if attempt not in overflows:
            step(optimizer, False)
            good += 1
        elif good or not skips_on_device(backend):
            with nothing_changes(optimizer, skips_on_device(backend)):
                step(optimizer, True)
        else:
            assert_only_copies(optimizer, params)
    assert outcome(optimizer, params) == outcome(*reversed(case.run(backend, good)))


def assert_only_copies(optimizer: ScaleAmendedSGD, params: list[Any]) -> None:
    """A skipped first step on a device may make masters, in which there is nothing but the parameters."""
    before = [bits(param) for param in params]
    step(optimizer, True)
    assert [bits(param) for param in params] == before
    for param, state in zip(params, states_of(optimizer, params), strict=True):
        master = state.pop("master_weight", param.float())
        assert torch.equal(master, param.float())
        assert not state or not param.numel()


@pytest.mark.parametrize("backend", backends())
def test_what_others_write_beside_a_skipped_step_is_taken_over(backend: str) -> None:
    """Between it and the next, and before it."""
    case = case_of("masters")
    runs = []
    for overflow in (True, False):
        params, optimizer = case.run(backend, 2)
        with torch.no_grad():
            params[0].mul_(1.5)
        if overflow:
            case.set_grads(params, 7)
            step(optimizer, True)
        with torch.no_grad():
            params[-1].mul_(0.5)
        case.set_grads(params, 2)
        step(optimizer, False)
        runs.append(outcome(optimizer, params))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("backend", backends())
def test_float16_with_masters_under_a_scaler(backend: str) -> None:
    """A whole loop; what a weight of 16 bits would lose, the master keeps."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=False, dtype=torch.float16).to(DEVICE)
    groups = [{"params": layer.parameters(), "amend": False}]
    optimizer = ScaleAmendedSGD(groups, lr=2e-4, backend=backend, master_weights=True)
    scaler = GradScaler(DEVICE.type, init_scale=2.0**15, growth_interval=3)
    before = layer.weight.detach().float()
    scales = []
    for _ in range(6):
        optimizer.zero_grad()
        scaler.scale(layer(torch.full((1, 4), 0.5, dtype=torch.float16, device=DEVICE)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [2.0**15, 2.0**15, 2.0**16, 2.0**15, 2.0**15, 2.0**15]  # the fourth is skipped
    master = optimizer.state[layer.weight]["master_weight"]
    torch.testing.assert_close(master, before - 5 * 1e-4, rtol=0, atol=1e-7)
    assert torch.equal(layer.weight, master.half())
