"""Parameter groups that are edited by hand, as torch.optim allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import backends

pytestmark = pytest.mark.usefixtures("default_device")


def stages() -> list[Parameter]:
    return [Parameter(torch.ones(2, 2)) for _ in range(3)]


def give_gradients(params: list[Parameter]) -> None:
    for param in params:
        param.grad = torch.ones(2, 2)


def without_first(optimizer: Any) -> None:
    del optimizer.param_groups[0]


def without_last(optimizer: Any) -> None:
    optimizer.param_groups.pop()


def cut(optimizer: Any) -> None:
    optimizer.param_groups = optimizer.param_groups[:2]


def reversed_groups(optimizer: Any) -> None:
    optimizer.param_groups.reverse()


def anew(optimizer: Any) -> None:
    last = optimizer.param_groups[-1]["params"]
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": last, "amend": False})


EDITS = [without_first, without_last, cut, reversed_groups, anew]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("edit", EDITS)
def test_groups_may_be_taken_out(edit: Callable[[Any], None], backend: str) -> None:
    ours, theirs = stages(), stages()
    optimizer = ScaleAmendedSGD([{"params": [p], "amend": False} for p in ours], lr=0.1, momentum=0.9, backend=backend)
    expected = SGD([{"params": [p]} for p in theirs], lr=0.1, momentum=0.9)
    for step in range(3):
        if step == 1:
            edit(optimizer)
            edit(expected)
        give_gradients(ours)
        give_gradients(theirs)
        optimizer.step()
        expected.step()
    torch.testing.assert_close(ours, theirs)


def test_what_is_left_keeps_its_factors() -> None:
    """The network is as it was; taking a group out freezes it."""
    params = [Parameter(torch.ones(8, 4)), Parameter(torch.ones(4, 8)), Parameter(torch.ones(2, 4))]
    optimizer = ScaleAmendedSGD([{"params": [p]} for p in params], head="plain")

    def rows() -> list[tuple[int, bool, float | None]]:
        return [(row.rows, row.scaled, row.backward_factor) for row in optimizer.layer_report()]

    assert rows() == [(8, True, 0.25), (4, True, 0.5), (2, False, 1.0)]
    del optimizer.param_groups[0]
    assert rows() == [(4, True, 0.5), (2, False, 1.0)]
    del optimizer.param_groups[-1]
    assert rows() == [(4, True, 0.5)]


def named_network() -> tuple[nn.Module, ScaleAmendedSGD]:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    return model, ScaleAmendedSGD(parameter_groups(model), lr=0.1)


def test_a_parameter_that_is_put_into_a_named_group_is_trained() -> None:
    _, optimizer = named_network()
    extra = Parameter(torch.ones(2))
    optimizer.param_groups[0]["params"].append(extra)
    extra.grad = torch.ones(2)
    optimizer.step()
    assert extra.tolist() == pytest.approx([0.9, 0.9])
    assert optimizer.param_groups[0]["param_names"][-2:] == ["2.bias", "parameter 3 of group 0"]
    assert len(optimizer.state_dict()["param_groups"][0]["param_names"]) == 4


def test_names_follow_their_parameters() -> None:
    model, _ = named_network()
    weights = [(name, param) for name, param in model.named_parameters() if param.dim() > 1]
    factors = {"0.weight": 1.0, "1.weight": 10.0, "2.weight": 3.0}
    optimizer = ScaleAmendedSGD(weights, factors=factors)
    optimizer.param_groups[0]["params"].pop(0)
    assert [(row.name, row.backward_factor) for row in optimizer.layer_report()] == [("1.weight", 10), ("2.weight", 3)]
    optimizer.param_groups[0]["params"].reverse()
    assert [(row.name, row.backward_factor) for row in optimizer.layer_report()] == [("2.weight", 3), ("1.weight", 10)]


def test_names_may_be_edited_too() -> None:
    _, optimizer = named_network()
    optimizer.param_groups[1]["param_names"] = ["first", "second", "third"]
    optimizer.refresh_norms()
    optimizer.param_groups[1]["amend"] = False
    assert [row.name for row in optimizer.layer_report()] == ["first", "second", "third"]


def test_a_checkpoint_with_other_names_leaves_ours() -> None:
    _, optimizer = named_network()
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["param_names"] = [f"module.{name}" for name in group["param_names"]]
    optimizer.load_state_dict(saved)
    assert [row.name for row in optimizer.layer_report()] == ["0.weight", "1.weight", "2.weight"]


def test_a_group_without_names_beside_named_ones() -> None:
    """The usual line for unfreezing, also Lightning's."""
    _, optimizer = named_network()
    backbone = nn.Linear(4, 3)
    optimizer.add_param_group({"params": backbone.parameters()})
    assert next(row.name for row in optimizer.layer_report()) == "parameter 0 of group 2"
    optimizer.name_parameters(nn.ModuleDict({"backbone": backbone}))
    assert [row.name for row in optimizer.layer_report()][:2] == ["backbone.weight", "0.weight"]


def test_names_for_groups_that_a_framework_made() -> None:
    model, _ = named_network()
    optimizer = ScaleAmendedSGD([{"params": [param]} for param in model.parameters()], factors="width")
    assert optimizer.layer_report()[0].name == "parameter 0 of group 0"
    optimizer.name_parameters(model)
    assert [row.name for row in optimizer.layer_report()] == ["0.weight", "1.weight", "2.weight"]
    with pytest.raises(ValueError, match="model: got a Linear with none of the optimizer's parameters"):
        optimizer.name_parameters(nn.Linear(2, 2))


@pytest.mark.parametrize("backend", backends())
def test_groups_of_another_optimizer(backend: str) -> None:
    """Wrappers share the list."""
    weight = Parameter(torch.ones(2, 2))
    sgd = SGD([weight], lr=0.1, momentum=0.5)
    optimizer = ScaleAmendedSGD([Parameter(torch.ones(1))], backend=backend)
    optimizer.param_groups = sgd.param_groups
    weight.grad = torch.ones(2, 2)
    optimizer.step()  # s = 2
    assert weight.flatten().tolist() == pytest.approx([0.8] * 4)
    assert "amend" not in sgd.param_groups[0]
    optimizer.param_groups.append({**sgd.param_groups[0], "params": [Parameter(torch.ones(2))]})
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_hand_made_group_is_checked() -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.1)
    bad = Parameter(torch.ones(2, 2, dtype=torch.complex64))
    bad.grad = torch.ones_like(bad)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [bad]})
    weight.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"params: parameter 0 of group 1 is .*complex64, want one of"):
        optimizer.step()
    assert weight.eq(1).all()


def test_rows_and_columns_follow_their_parameters_too() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Conv2d(8, 6, 3, groups=2), nn.Linear(6, 3))
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1)
    weights = optimizer.param_groups[1]["params"]
    weights.reverse()
    assert [(row.name, row.rows, row.columns) for row in optimizer.layer_report()] == [
        ("2.weight", 3, 6),
        ("1.weight", 6, 8),
        ("0.weight", 8, 4),
    ]
    del weights[1]
    weights.append(Parameter(torch.ones(5, 7)))
    assert [(row.rows, row.columns) for row in optimizer.layer_report()] == [(3, 6), (8, 4), (5, 7)]
    assert "model_order" not in optimizer.param_groups[1]


@pytest.mark.parametrize("edit", [without_first, reversed_groups, cut])
def test_a_compiled_step_follows_edits(edit: Callable[[Any], None]) -> None:
    """And leaves each gradient where it was."""
    ours, theirs = stages(), stages()
    optimizer = ScaleAmendedSGD([{"params": [p], "amend": False} for p in ours], lr=0.1)
    expected = SGD([{"params": [p]} for p in theirs], lr=0.1)
    step = torch.compile(optimizer.step, backend="eager")
    for turn in range(3):
        for scale, params in enumerate(zip(ours, theirs, strict=True), 1):
            for param in params:
                param.grad = torch.full((2, 2), float(scale))
        if turn == 1:
            edit(optimizer)
            edit(expected)
        step()
        expected.step()
        assert [param.grad[0, 0].item() for param in ours] == [1.0, 2.0, 3.0]
    torch.testing.assert_close(ours, theirs)


def test_lists_of_parameters_that_are_exchanged() -> None:
    named = [(str(rows), Parameter(torch.ones(rows, 3, 2))) for rows in (4, 5)]
    groups = [{"params": [param], "rows": [param[1].shape[0]]} for param in named]
    optimizer = ScaleAmendedSGD(groups)
    one, other = optimizer.param_groups
    one["params"], other["params"] = other["params"], one["params"]
    assert [(row.name, row.rows) for row in optimizer.layer_report()] == [("5", 5), ("4", 4)]
