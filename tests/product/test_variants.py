"""Which variant of the algorithm an optimizer runs: shown, saved, and missed when a checkpoint has another."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import Parameter
from torch.optim import SGD

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import through_file

pytestmark = pytest.mark.usefixtures("default_device")

RECOMMENDED: dict[str, Any] = {"norms": "freeze", "head": "plain", "decay": "shape"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def trained(**options: Any) -> tuple[nn.Module, ScaleAmendedSGD]:
    model = network()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, **options)
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def test_it_shows_in_defaults_and_not_in_the_groups() -> None:
    _, optimizer = trained(momentum=0.9, **RECOMMENDED)
    assert {name: optimizer.defaults[name] for name in RECOMMENDED} == RECOMMENDED
    optimizer.add_param_group({"params": [("new", Parameter(torch.ones(3)))], "head": "plain"})
    assert not RECOMMENDED.keys() & optimizer.param_groups[-1].keys()
    with pytest.raises(ValueError, match="norms: got 'track' for one parameter group, want it for the whole optimizer"):
        optimizer.add_param_group({"params": [("other", Parameter(torch.ones(3)))], "norms": "track"})
    assert len(optimizer.param_groups) == 3


def test_it_prints_in_a_few_lines() -> None:
    _, optimizer = trained(momentum=0.9, **RECOMMENDED)
    text = repr(optimizer)
    assert "head='plain', decay='shape', norms='freeze'" in text
    assert "Parameter Group 1\n    parameters: 2\n    amend: True\n" in text
    assert "0.weight" not in text
    each = ScaleAmendedSGD([{"params": [Parameter(torch.ones(2))]} for _ in range(50)], factors={})
    assert "Parameter Groups 0 to 49, each\n    parameters: 1\n" in repr(each)
    assert "a mapping of 0" in repr(each)
    relative = repr(ScaleAmendedSGD([Parameter(torch.ones(2))], scale="relative"))
    assert "factors" not in relative and "norms" not in relative  # which have no part in it
    assert max(len(text), len(repr(each))) < 800


@pytest.mark.parametrize("from_file", [False, True])
def test_a_checkpoint_of_another_variant_is_noticed(from_file: bool) -> None:
    _, optimizer = trained(momentum_dtype=torch.bfloat16, momentum=0.9, **RECOMMENDED)
    saved = optimizer.state_dict()
    if from_file:
        saved = through_file(saved)
    same = ScaleAmendedSGD(parameter_groups(network()), momentum_dtype=torch.bfloat16, **RECOMMENDED)
    same.load_state_dict(saved)
    assert same.state_dict() == {**saved, "state": same.state_dict()["state"]}
    other = ScaleAmendedSGD(parameter_groups(network()), norms="freeze", output_width=7)
    with pytest.warns(UserWarning) as caught:
        other.load_state_dict(saved)
    (text,) = {str(warning.message) for warning in caught}
    assert text.startswith(
        "state_dict: this checkpoint was made with head='plain', decay='shape', output_width=None, "
        "momentum_dtype='torch.bfloat16'; this optimizer has head='amended', decay='amended', output_width=7, "
    )
    assert "head" not in other.param_groups[0]
    assert other.param_groups[0]["momentum"] == 0.9


def test_a_mapping_of_factors_is_compared_by_names() -> None:
    factors = {"0.weight": 2.0, "2.weight": 1.0}
    model, optimizer = trained(factors=factors)
    by_param = {param: factors[name] for name, param in model.named_parameters() if name in factors}
    ScaleAmendedSGD(parameter_groups(model), factors=by_param).load_state_dict(optimizer.state_dict())
    other = ScaleAmendedSGD(parameter_groups(model))
    with pytest.warns(UserWarning, match=r"made with factors={'0.weight': 2.0, .*this optimizer has factors='width'"):
        other.load_state_dict(optimizer.state_dict())


def test_sgd_takes_such_a_checkpoint_and_gives_it_back() -> None:
    model, optimizer = trained(momentum=0.9, **RECOMMENDED)
    sgd = SGD(parameter_groups(model), lr=0.5)
    sgd.load_state_dict(optimizer.state_dict())
    sgd.step()
    with pytest.warns(UserWarning, match="made with head='plain'"):
        ScaleAmendedSGD(parameter_groups(model)).load_state_dict(sgd.state_dict())


def test_a_checkpoint_from_before_loads_in_silence() -> None:
    model, optimizer = trained(momentum=0.9)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        for name in ("factors", "head", "decay", "norms", "eps", "output_width", "master_weights", "momentum_dtype"):
            del group[name]
        del group["rounding"], group["rounding_seed"]
    ScaleAmendedSGD(parameter_groups(model), **RECOMMENDED).load_state_dict(saved)


# Each gives state to some of the parameters only.
PARTIAL: list[dict[str, Any]] = [
    {"norms": "freeze"},
    {"master_weights": True},
    {"rounding": "stochastic"},
    {"norms": "freeze", "master_weights": True},
]


@pytest.mark.parametrize("options", PARTIAL, ids=str)
def test_torchs_distributed_checkpoint_takes_state_of_some(options: dict[str, Any]) -> None:
    def make() -> tuple[nn.Module, ScaleAmendedSGD]:
        model = network()
        model[0].bfloat16()
        model[2].bias.requires_grad_(False)
        model[2].weight.requires_grad_("norms" in options)  # and gets no gradient
        return model, ScaleAmendedSGD(parameter_groups(model), lr=0.1, **options)

    model, optimizer = make()
    model[1](model[0](torch.ones(3, 4, dtype=torch.bfloat16)).float()).square().sum().backward()
    optimizer.step()
    saved = get_optimizer_state_dict(model, optimizer)
    model, other = make()
    template = get_optimizer_state_dict(model, other)  # by a step of no length
    assert {n: e.keys() for n, e in template["state"].items()} == {n: e.keys() for n, e in saved["state"].items()}
    set_optimizer_state_dict(model, other, saved)
    kept, wanted = (o.state_dict()["state"] for o in (other, optimizer))
    assert {place: entry.keys() for place, entry in kept.items()} == {p: entry.keys() for p, entry in wanted.items()}
    assert any(kept.values())


def test_an_optimizer_without_state_saves_none() -> None:
    assert trained()[1].state_dict()["state"] == {}


def test_defaults_are_plain_data() -> None:
    model = network()
    factors = dict.fromkeys(parameter_groups(model)[1]["params"], 2.0)
    by_param = {param: value for (_, param), value in factors.items()}
    optimizer = ScaleAmendedSGD(parameter_groups(model), factors=by_param, momentum_dtype=torch.bfloat16)
    assert json.loads(json.dumps(optimizer.defaults))["factors"] == {"0.weight": 2.0, "2.weight": 2.0}
    optimizer.add_param_group({"params": [("new", Parameter(torch.ones(3)))]})


def test_a_users_hook_has_the_last_word() -> None:
    _, optimizer = trained(**RECOMMENDED)
    optimizer.register_state_dict_post_hook(lambda _, saved: {"wrapped": saved})
    assert optimizer.state_dict()["wrapped"]["param_groups"][0]["norms"] == "freeze"


def test_a_copys_checkpoint_has_the_factors_of_a_mapping() -> None:
    optimizer = ScaleAmendedSGD(parameter_groups(network()), factors={"0.weight": 2.0, "2.weight": 1.0})
    saved = copy.deepcopy(optimizer).state_dict()
    assert saved["param_groups"][0]["factors"] == {"0.weight": 2.0, "2.weight": 1.0}
    optimizer.load_state_dict(saved)  # without a warning


def test_an_optimizer_from_a_file_of_version_0_1() -> None:
    _, optimizer = trained(momentum=0.9)
    optimizer.add_param_group({"params": [("new", Parameter(torch.ones(9, 9)))]})
    expected = optimizer.layer_report()
    state = optimizer.__getstate__()
    for name in ("_stepper", "_unscales", "_is_constructed"):
        del state[name]
    heads = optimizer._stepper.network.heads
    state |= {"_initial_groups": 2, "_head": heads[0], "_head_rows": 2, "_candidates": ("native", "foreach")}
    old = ScaleAmendedSGD.__new__(ScaleAmendedSGD)
    old.__setstate__(state)
    assert old.layer_report() == expected
    old.step()
    copy.deepcopy(old).state_dict()
