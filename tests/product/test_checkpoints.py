"""Checkpoints go to torch.optim.SGD and come from it, and what does not fit is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, Optimizer

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import Case, assert_close, backends, randn, states_of, through_file
from tests.tiers import thin
from tests.unchanged import bits, nothing_changes

pytestmark = pytest.mark.usefixtures("default_device")
FOREIGN = "not of ScaleAmendedSGD"
CASE = Case([(6, 5), (6,), (4, 3, 3, 3), (), (0, 2), (3, 4)])
PLAIN_FORM = {"foreach": False, "fused": False}
MOMENTA: list[dict[str, Any]] = [{"dampening": 0.3}, {"nesterov": True}, {"maximize": True, "weight_decay": 0.1}]


def load_foreign(optimizer: ScaleAmendedSGD, state_dict: dict[str, Any]) -> None:
    """Loads another optimizer's checkpoint, with its one warning, which points here."""
    with pytest.warns(UserWarning, match=FOREIGN) as caught:
        optimizer.load_state_dict(through_file(state_dict))
    assert [warning.filename for warning in caught] == [__file__]


def run(optimizer: Optimizer, params: list[Parameter], steps: range) -> None:
    for step in steps:
        CASE.set_grads(params, step)
        optimizer.step()


def unamended(params: list[Parameter], backend: str, **options: Any) -> ScaleAmendedSGD:
    return ScaleAmendedSGD([{"params": params, "amend": False}], backend=backend, **options)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("options", MOMENTA, ids=str)
def test_sgd_continues_as_ours_and_ours_as_sgd(options: dict[str, Any], backend: str) -> None:
    """Unamended, a run that changes hands twice is a run of torch.optim.SGD. The checkpoint brings the options."""
    options = {"lr": 0.05, "momentum": 0.9, **options}
    expected, params = CASE.params(), CASE.params()
    sgd = SGD(expected, **options, **PLAIN_FORM)
    run(sgd, expected, range(9))

    first = SGD(params, **options, **PLAIN_FORM)
    run(first, params, range(3))
    ours = unamended(params, backend)
    load_foreign(ours, first.state_dict())
    assert ours.param_groups[0].items() >= options.items()
    assert ours.param_groups[0]["amend"] is False
    run(ours, params, range(3, 6))
    last = SGD(params, **PLAIN_FORM)
    last.load_state_dict(through_file(ours.state_dict()))
    run(last, params, range(6, 9))

    for actual, want in zip(params, expected, strict=True):
        assert_close(actual, want, torch.float32)
        assert_close(last.state[actual]["momentum_buffer"], sgd.state[want]["momentum_buffer"], torch.float32)


@pytest.mark.parametrize("backend", backends())
def test_how_it_computes_stays_as_constructed(backend: str) -> None:
    sgd = SGD(CASE.params(), fused=True)
    optimizer = unamended(CASE.params(), backend)
    load_foreign(optimizer, sgd.state_dict())
    assert (optimizer.param_groups[0]["foreach"], optimizer.param_groups[0]["fused"]) == (None, None)


@pytest.mark.parametrize("backend", backends())
def test_an_old_checkpoint(backend: str) -> None:
    """Before torch 1.12 there was no `maximize`, and buffers that had not started were None."""
    theirs, params = CASE.params(), CASE.params()
    old_group = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.0, "nesterov": False}
    buffers: list[Tensor | None] = [None, *(torch.ones_like(p) for p in theirs[1:])]
    old = {
        "state": {index: {"momentum_buffer": buffer} for index, buffer in enumerate(buffers)},
        "param_groups": [{**old_group, "params": list(range(len(theirs)))}],
    }
    sgd = SGD(theirs, **PLAIN_FORM)
    sgd.load_state_dict(copy.deepcopy(old))
    optimizer = unamended(params, backend, maximize=True)
    load_foreign(optimizer, old)
    assert optimizer.param_groups[0]["maximize"] is False
    run(sgd, theirs, range(2))
    run(optimizer, params, range(2))
    for actual, want in zip(params, theirs, strict=True):
        assert_close(actual, want, torch.float32)


def changed(state_dict: dict[str, Any], **group: Any) -> dict[str, Any]:
    return {**state_dict, "param_groups": [{**state_dict["param_groups"][0], **group}]}


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("foreign", [False, True])
def test_what_does_not_fit_is_refused(foreign: bool, backend: str) -> None:
    """With an error, not with the warning of another optimizer's checkpoint."""
    _, optimizer = CASE.run(backend)
    params, saving = CASE.params(), None
    saving = SGD(params, momentum=0.9) if foreign else ScaleAmendedSGD(params, momentum=0.9)
    run(saving, params, range(1))
    good = saving.state_dict()
    fewer = changed(good, params=[0, 1, 2])
    more = {**good, "param_groups": good["param_groups"] * 2}
    misshapen = copy.deepcopy(good)
    misshapen["state"][2]["momentum_buffer"] = torch.ones(4, 27)
    for bad, text in (
        (fewer, r"groups of \[3\] parameters, want \[6\]"),
        (more, r"groups of \[6, 6\] parameters, want \[6\]"),
        (misshapen, r"momentum_buffer of parameter 2 of group 0 has shape \(4, 27\), want .* \(4, 3, 3, 3\)"),
        (Adam(CASE.params()).state_dict(), "without momentum, dampening, want a checkpoint of"),
    ):
        with nothing_changes(optimizer), pytest.raises(ValueError, match=f"state_dict: .*{text}"):
            optimizer.load_state_dict(bad)


@thin(slow=1)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_momentum_takes_the_parameters_dtype_and_layout(layout: str, dtype: torch.dtype, backend: str) -> None:
    """The checkpoint has contiguous float32 buffers; a transposed one of our own comes back as it was."""
    (param,) = Case([(4, 3, 5, 2)], dtype, layout).params()
    buffer = randn(param.shape)
    sgd = SGD([Parameter(torch.ones(param.shape))], lr=0.1, momentum=0.5)
    sgd.state[sgd.param_groups[0]["params"][0]]["momentum_buffer"] = buffer
    optimizer = ScaleAmendedSGD([param], backend=backend)
    load_foreign(optimizer, sgd.state_dict())
    loaded = optimizer.state[param]["momentum_buffer"]
    assert (loaded.dtype, loaded.stride()) == (dtype, param.stride())
    assert bits(loaded) == bits(buffer.to(dtype))
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert optimizer.state[param]["momentum_buffer"] is loaded
    assert_close(loaded, buffer / 2, dtype)


def test_own_hooks_run_before_the_checks_and_after_loading() -> None:
    params, optimizer = CASE.run("reference")
    saved = SGD(params, lr=0.7).state_dict()
    calls = []

    def unwrap(_: Optimizer, wrapped: dict[str, Any]) -> dict[str, Any]:
        calls.append("pre")
        return changed(wrapped["optimizer"], amend=False, rows=None, columns=None)

    optimizer.register_load_state_dict_pre_hook(unwrap)
    optimizer.register_load_state_dict_post_hook(lambda optimizer: calls.append("post"))
    for _ in range(2):
        optimizer.load_state_dict({"optimizer": saved})
    assert calls == ["pre", "post"] * 2
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["amend"]) == (0.7, False)
    assert "amend" not in saved["param_groups"][0]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_norms_come_back_exactly(dtype: torch.dtype, backend: str) -> None:
    case = Case([(3, 5), (7, 3)], dtype, options={"norms": "freeze", "lr": 0.1})
    params, optimizer = case.run(backend)
    norms = [float(p.detach().double().square().sum()) / p.shape[0] for p in case.params()]
    saved = through_file(optimizer.state_dict())
    assert [type(saved["state"][index]["row_norm_sq"]) for index in (0, 1)] == [float, float]
    resumed = case.optimizer(params, backend)
    resumed.load_state_dict(saved)
    kept = [state["row_norm_sq"] for state in states_of(optimizer, params)]
    assert kept == pytest.approx(norms, rel=1e-6)
    assert [state["row_norm_sq"] for state in states_of(resumed, params)] == kept
    assert [row.row_norm_sq for row in resumed.layer_report()] == kept


@pytest.mark.parametrize("backend", backends())
def test_norms_to_freeze_are_taken_at_the_first_update_after_loading(backend: str) -> None:
    case = Case([(3, 5)], options={"norms": "freeze"})
    (param,), optimizer = case.run(backend)
    load_foreign(optimizer, SGD([param], lr=0.0).state_dict())
    optimizer.step()  # lr = 0, as torch.distributed.checkpoint steps to initialise the state
    (state,) = states_of(optimizer, [param])
    assert math.isnan(state["row_norm_sq"])  # none yet, but it will know that there is one to load
    with torch.no_grad():
        param.mul_(3)
    norm = float(param.detach().double().square().sum()) / 3
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    optimizer.step()
    (state,) = states_of(optimizer, [param])
    assert state["row_norm_sq"] == pytest.approx(norm, rel=1e-6)
