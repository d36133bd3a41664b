"""After a step that spoiled the weights training goes on once they are put back, in whatever way."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import Case, backends, skips_on_device

SHAPES = [(6, 5), (130, 140), (4, 6), (6,)]
OPTIONS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_weights_put_back_unseen(spoilt: float, momentum: float, backend: str) -> None:
    """As if the step had not been; on a device, where nobody waits for a norm, one step later."""
    case = Case(SHAPES, options={**OPTIONS, "momentum": momentum})
    params, optimizer = case.run(backend, 2)
    kept = [params[index] for index in (0, 1)]
    kept += [optimizer.state[param]["momentum_buffer"] for param in kept] if momentum else []
    backup = [tensor.detach().clone() for tensor in kept]
    case.set_grads(params, 2)
    for param in params[:2]:
        param.grad[-1, 0] = spoilt
    optimizer.step()
    assert not any(bool(tensor.isfinite().all()) for tensor in kept)

    for tensor, value in zip(kept, backup, strict=True):
        tensor.data.copy_(value)
    case.set_grads(params, 2)
    if skips_on_device(backend):
        optimizer.step()
        assert all(map(torch.equal, kept, backup))
    optimizer.step()
    expected, _ = case.run(backend, 3)
    assert all(map(torch.equal, params[:2], expected[:2]))
    optimizer.step()
    assert all(bool(param.isfinite().all()) for param in params)
    assert not any(row.stale_steps for row in optimizer.layer_report())


@pytest.mark.parametrize("backend", backends())
def test_a_network_that_is_not_finite_is_not_patched_up(backend: str) -> None:
    """Nobody puts anything back: what is not finite stays so."""
    case = Case(SHAPES, options=OPTIONS)
    params, optimizer = case.run(backend, 1)
    case.set_grads(params, 1)
    params[0].grad.fill_(math.nan)
    for step in range(2, 5):
        optimizer.step()
        assert bool(params[0].isnan().all())
        case.set_grads(params, step)
    assert not any(row.stale_steps for row in optimizer.layer_report())


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_not_frozen(spoilt: float, backend: str) -> None:
    """Weights that were spoilt before the first update are put right; their norm is frozen then."""
    params = [Parameter(torch.ones(2, 3)), Parameter(torch.ones(4, 2))]
    optimizer = ScaleAmendedSGD(params, lr=0.1, norms="freeze", backend=backend)
    params[0].data[0, 0] = spoilt
    for step in range(5):
        for param in params:
            param.grad = torch.full_like(param, 0.01)
        optimizer.step()
        if step == 1:
            params[0].data.fill_(2.0)
    assert params[0].isfinite().all()
    assert not params[0].eq(2.0).any()
    state = optimizer.state_dict()["state"]
    assert state[0]["row_norm_sq"] == pytest.approx(12.0)
    assert state[1]["row_norm_sq"] == pytest.approx(2.0)


@pytest.mark.parametrize("backend", backends(("native",)))
def test_a_report_before_that_step_is_right_too(backend: str) -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.1, backend=backend)
    weight.grad = torch.full((2, 2), math.nan)
    optimizer.step()
    weight.data.fill_(3.0)
    assert optimizer.layer_report()[0].row_norm_sq == 18.0


@pytest.mark.parametrize("backend", backends(("native", "foreach", "reference")))
def test_masters_of_weights_put_back_unseen(backend: str) -> None:
    """On a device nobody waits to see it: refresh_norms() there."""
    weight = Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = ScaleAmendedSGD([weight], lr=0.25, master_weights=True, backend=backend)
    weight.grad = torch.full_like(weight, math.nan)
    optimizer.step()
    weight.data.fill_(1.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()  # s = 2
    assert weight.eq(0.5).all()


@pytest.mark.parametrize("backend", backends(("native", "foreach", "reference")))
@pytest.mark.parametrize("spoilt", [1e3, 1e10])
def test_exploded_weights_put_back_unseen(spoilt: float, backend: str) -> None:
    """They are finite, and too large for the norm to be of any use; on a device that norm is used once."""
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.25, backend=backend)
    weight.grad = torch.full((2, 2), spoilt)
    optimizer.step()
    weight.data.fill_(1.0)
    weight.grad = torch.ones(2, 2)
    optimizer.step()  # s = 2
    assert weight.eq(0.5).all()
    assert not optimizer.layer_report()[0].stale_steps
