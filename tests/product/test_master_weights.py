"""Float32 masters of 16-bit parameters: in step with the parameters, whoever writes them, and whole in checkpoints."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, Case, backends, randn, states_of

BFLOAT16 = torch.bfloat16
OPTIONS = {"lr": 1e-3, "momentum": 0.9, "master_weights": True}
CASE = Case([(6, 5), (5,), (4, 6)], BFLOAT16, options=OPTIONS)


def masters(optimizer: ScaleAmendedSGD, params: list[Parameter]) -> list[Tensor]:
    return [state["master_weight"].clone() for state in states_of(optimizer, params)]


def step(optimizer: ScaleAmendedSGD, params: list[Parameter], number: int, case: Case = CASE) -> None:
    case.set_grads(params, number)
    optimizer.step()


@pytest.mark.parametrize("backend", backends())
def test_many_small_steps_add_up(backend: str) -> None:
    """Each is a thirtieth of what a bfloat16 weight of 1 resolves."""
    param = Parameter(torch.ones(8, dtype=BFLOAT16, device=DEVICE))
    optimizer = ScaleAmendedSGD([param], lr=2.0**-12, master_weights=True, backend=backend)
    for _ in range(256):
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert param.eq(1 - 2**-4).all()


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("unseen", [False, True])
def test_what_others_write_is_taken_over(backend: str, unseen: bool) -> None:
    """Elements that keep their value keep what the master knows beyond it; the norm is of the new weights."""
    params, optimizer = CASE.run(backend, steps=2)
    before = masters(optimizer, params)[0]
    target = params[0].data if unseen else params[0]
    with torch.no_grad():
        target[0] = 7.0
    if unseen:
        optimizer.refresh_norms()
    expected = torch.cat([torch.full_like(before[:1], 7.0), before[1:]])
    norm = optimizer.layer_report()[0].row_norm_sq
    assert norm == pytest.approx(float(expected.double().square().sum()) / 6, rel=1e-7)

    others = [Parameter(param.detach().clone()) for param in params]
    fresh = CASE.optimizer(others, "reference")
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["master_weight"] = expected
    fresh.load_state_dict(state)
    step(optimizer, params, 2)
    step(fresh, others, 2)
    torch.testing.assert_close(masters(optimizer, params), masters(fresh, others), rtol=1e-6, atol=1e-6)
    assert all(
        param.equal(master.to(BFLOAT16)) for param, master in zip(params, masters(optimizer, params), strict=True)
    )


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("norms", ["track", "freeze"])
def test_what_is_written_unseen_is_taken_over_without_a_report(norms: str, backend: str) -> None:
    case = Case(CASE.shapes, BFLOAT16, options={**OPTIONS, "norms": norms})
    params, optimizer = case.run(backend, steps=2)
    for param in params:
        param.data.fill_(4.0)
    optimizer.refresh_norms()
    optimizer.param_groups[0].update(lr=0.0)
    step(optimizer, params, 2, case)
    assert all(param.eq(4).all() for param in params)
    assert all(master.eq(4).all() for master in masters(optimizer, params))


@pytest.mark.parametrize("backend", backends())
def test_a_model_loaded_after_its_optimizer_wins(backend: str) -> None:
    params, optimizer = CASE.run(backend, steps=2)
    with torch.no_grad():
        for param in params:
            param.copy_(torch.full_like(param, 0.5))
    CASE.set_grads(params, 2)
    for param in params:
        assert param.grad is not None
        param.grad.zero_()
    optimizer.param_groups[0]["momentum"] = 0.0
    optimizer.step()
    assert all(master.bfloat16().eq(0.5).all() for master in masters(optimizer, params))


@pytest.mark.parametrize("backend", backends())
def test_loading_gives_them_back_uncast(backend: str) -> None:
    params, optimizer = CASE.run(backend, steps=3)
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"][0]["master_weight"].dtype == torch.float32
    others = [Parameter(param.detach().clone()) for param in params]
    other = CASE.optimizer(others, backend)
    other.load_state_dict(copy.deepcopy(saved))
    for state in other.state.values():
        assert state["master_weight"].dtype == state["momentum_buffer"].dtype == torch.float32
    for mine, theirs in zip(states_of(optimizer, params), states_of(other, others), strict=True):
        assert mine["master_weight"].equal(theirs["master_weight"])
        assert mine["momentum_buffer"].equal(theirs["momentum_buffer"])
    assert any(
        not state["master_weight"].equal(state["master_weight"].bfloat16().float()) for state in other.state.values()
    )


@pytest.mark.parametrize("backend", backends())
def test_checkpoints_of_others(backend: str) -> None:
    """torch.optim.SGD's, and those of runs without masters, begin with what the parameters are."""
    params = CASE.params()
    sgd = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    CASE.set_grads(params, 0)
    sgd.step()
    optimizer = CASE.optimizer(params, backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is SGD's
        optimizer.load_state_dict(sgd.state_dict())
    for param, state in optimizer.state.items():
        assert state["momentum_buffer"].dtype == torch.float32
        assert state["momentum_buffer"].equal(sgd.state[param]["momentum_buffer"].float())
    optimizer.param_groups[0]["lr"] = 0.0
    step(optimizer, params, 1)
    assert all(param.equal(master.bfloat16()) for param, master in zip(params, masters(optimizer, params), strict=True))


@pytest.mark.parametrize("backend", backends())
def test_an_optimizer_without_masters_drops_them(backend: str) -> None:
    params, optimizer = CASE.run(backend)
    plain = ScaleAmendedSGD(params, lr=1e-3, momentum=0.9, backend=backend)
    with pytest.warns(UserWarning, match="made with master_weights=True; this optimizer has master_weights=False"):
        plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for param in params:
        assert plain.state[param].keys() == {"momentum_buffer"}
        assert plain.state[param]["momentum_buffer"].dtype == BFLOAT16
    step(plain, params, 3)


@pytest.mark.parametrize("backend", backends())
def test_a_copy_has_masters_of_its_own(backend: str) -> None:
    params, optimizer = CASE.run(backend)
    copied = copy.deepcopy(optimizer)
    kept = masters(optimizer, params)
    twins = copied.param_groups[0]["params"]
    step(copied, twins, 3)
    assert all(a.equal(b) for a, b in zip(masters(optimizer, params), kept, strict=True))
    step(optimizer, params, 3)
    assert all(a.equal(b) for a, b in zip(masters(optimizer, params), masters(copied, twins), strict=True))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(6, 5).to_sparse()])
def test_a_master_that_does_not_fit(backend: str, wrong: Tensor) -> None:
    params, optimizer = CASE.run(backend)
    before = [param.detach().clone() for param in params]
    optimizer.state[params[0]]["master_weight"] = wrong.to(DEVICE)
    with pytest.raises(ValueError, match=r"^master_weight of parameter 0 of group 0: got .* want"):
        step(optimizer, params, 3)
    assert all(param.equal(old) for param, old in zip(params, before, strict=True))
    state = optimizer.state_dict()
    state["state"][0]["master_weight"] = torch.zeros(3, device=DEVICE)
    with pytest.raises(ValueError, match=r"^state_dict: master_weight of parameter 0 of group 0 has shape \(3,\)"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("backend", backends())
def test_a_master_that_does_not_fit_is_found_when_it_is_needed(backend: str) -> None:
    """It was put in while its parameter had no gradient; a kernel must not read behind its end."""
    case = Case([(64, 64), (8, 64)], BFLOAT16, options=OPTIONS)
    params, optimizer = case.run(backend)
    optimizer.state[params[0]]["master_weight"] = torch.zeros(1, device=DEVICE)
    params[0].grad = None
    optimizer.step()
    second = optimizer.layer_report()[1].row_norm_sq
    assert second == pytest.approx(float(masters(optimizer, params)[1].double().square().sum()) / 8)
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match=r"^master_weight of parameter 0 of group 0: got shape \(1,\), want"):
        step(optimizer, params, 3, case)
    assert all(param.equal(old) for param, old in zip(params, before, strict=True))
    del optimizer.state[params[0]]["master_weight"]
    step(optimizer, params, 3, case)
    assert not params[0].equal(before[0])


@pytest.mark.parametrize("backend", backends())
def test_masters_that_somebody_puts_in(backend: str) -> None:
    """Of another dtype or layout, or where they were none: they are what counts, as far as the parameters agree."""
    params, optimizer = CASE.run(backend)
    optimizer.state[params[0]]["master_weight"] = params[0].detach().double().T.contiguous().T
    optimizer.state[params[1]].pop("master_weight")
    step(optimizer, params, 3)
    for param, master in zip(params, masters(optimizer, params), strict=True):
        assert master.dtype == torch.float32
        assert param.equal(master.bfloat16())


@pytest.mark.parametrize("backend", backends())
def test_a_parameter_that_changes_its_dtype(backend: str) -> None:
    """model.float() after some steps: there is no master any more, and the step goes on."""
    params, optimizer = CASE.run(backend)
    for param in params:
        param.data = param.data.float()
    case = Case(CASE.shapes, torch.float32)
    before = params[0].detach().clone()
    step(optimizer, params, 3, case)
    assert not params[0].equal(before)
    assert all(state.keys() == {"momentum_buffer"} for state in states_of(optimizer, params))


def test_a_group_that_cannot_be_stored_is_not_added() -> None:
    optimizer = ScaleAmendedSGD([Parameter(randn((2, 2)))], lr=0.1, rounding="stochastic")
    half = Parameter(randn((2, 2)).half())
    with pytest.raises(ValueError, match=r"^rounding: got .stochastic. for parameter 0 of group 1"):
        optimizer.add_param_group({"params": [half]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("backend", backends())
def test_two_optimizers_do_not_share_masters(backend: str) -> None:
    """Though a state dictionary is loaded without a copy, with which torch shares momentum buffers."""
    params, optimizer = CASE.run(backend)
    others = [Parameter(param.detach().clone()) for param in params]
    other = CASE.optimizer(others, backend)
    other.load_state_dict(optimizer.state_dict())
    kept = masters(optimizer, params)
    step(other, others, 3)
    assert all(a.equal(b) for a, b in zip(masters(optimizer, params), kept, strict=True))


@pytest.mark.parametrize("backend", backends())
def test_hooks_after_loading_have_the_last_word(backend: str) -> None:
    params, optimizer = CASE.run(backend)

    def forget_momentum(loaded: torch.optim.Optimizer) -> None:
        for state in loaded.state.values():
            state["momentum_buffer"].zero_()

    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.register_load_state_dict_post_hook(forget_momentum)
    optimizer.load_state_dict(saved)
    for state in states_of(optimizer, params):
        assert state["momentum_buffer"].eq(0).all()
        assert state["momentum_buffer"].dtype == torch.float32


def test_loading_what_the_options_do_not_allow_changes_nothing() -> None:
    param = Parameter(randn((3, 3)))
    optimizer = ScaleAmendedSGD([param], lr=0.1, momentum=0.9, momentum_dtype=BFLOAT16)
    param.grad = randn((3, 3))
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 5.0
    param.data = param.data.half()
    with pytest.raises(ValueError, match=r"^momentum_dtype: got torch.bfloat16 for parameter 0 of group 0"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.state[param]["momentum_buffer"].dtype == BFLOAT16
