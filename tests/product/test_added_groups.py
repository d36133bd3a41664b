"""Groups that are added or exchanged later: stages that are unfrozen, and new heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD, parameter_groups

pytestmark = pytest.mark.usefixtures("default_device")


def test_another_network_has_another_head() -> None:
    optimizer = ScaleAmendedSGD([Parameter(torch.ones(3, 4)), Parameter(torch.ones(2, 3))], head="plain")
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": [Parameter(torch.ones(6, 4)), Parameter(torch.ones(5, 6))]})
    assert [(row.rows, row.scaled, row.backward_factor) for row in optimizer.layer_report()] == [
        (6, True, 5 / 6),
        (5, False, 1.0),
    ]


def test_groups_that_were_added_stay_in_their_order_when_others_go() -> None:
    optimizer = ScaleAmendedSGD([{"params": [Parameter(torch.ones(rows, 9))]} for rows in (5, 4)])
    for rows in (6, 7, 8):
        optimizer.add_param_group({"params": [Parameter(torch.ones(rows, 9))]})
    del optimizer.param_groups[0]
    del optimizer.param_groups[2]
    assert [row.rows for row in optimizer.layer_report()] == [8, 6, 4]


def head_and_backbone() -> tuple[list[Parameter], list[Parameter]]:
    return [Parameter(torch.ones(12, 8)), Parameter(torch.ones(16, 12))], [Parameter(torch.ones(5, 16))]


def test_a_head_that_is_added_later_is_not_silent() -> None:
    backbone, head = head_and_backbone()
    optimizer = ScaleAmendedSGD(backbone, head="plain")
    with pytest.warns(UserWarning, match="parameter 0 of group 1 takes the 16 outputs of parameter 1 of"):
        optimizer.add_param_group({"params": head})


def test_a_stage_that_is_unfrozen_is_silent() -> None:
    backbone, head = head_and_backbone()
    optimizer = ScaleAmendedSGD(head, head="plain")
    optimizer.add_param_group({"params": backbone})
    optimizer.add_param_group({"params": [Parameter(torch.ones(8, 3)), Parameter(torch.ones(8))]})
    assert [row.rows for row in optimizer.layer_report()] == [8, 12, 16, 5]


def test_a_head_that_takes_the_place_of_the_old_one() -> None:
    """By hand in the list, in another group, or added where the old head's group was taken out."""
    for way in range(4):
        backbone, head = head_and_backbone()
        optimizer = ScaleAmendedSGD([{"params": backbone}, {"params": head}], head="plain")
        new = Parameter(torch.ones(7, 16))
        if way == 0:
            optimizer.param_groups[1]["params"][0] = new
        elif way == 1:
            optimizer.param_groups[1] = {**optimizer.param_groups[1], "params": [new]}
        else:
            del optimizer.param_groups[1]
            if way == 2:
                optimizer.param_groups[0]["params"].append(new)
            else:
                optimizer.add_param_group({"params": [new]})
        last = optimizer.layer_report()[-1]
        assert (last.rows, last.scaled, last.backward_factor) == (7, False, 1.0)


def test_a_group_that_was_added_stays_where_it_is_when_it_loses_a_parameter() -> None:
    optimizer = ScaleAmendedSGD([Parameter(torch.ones(rows, 9)) for rows in (5, 4)])
    optimizer.add_param_group({"params": [Parameter(torch.ones(rows, 9)) for rows in (7, 6)]})
    optimizer.param_groups[1]["params"].pop(0)
    assert [row.rows for row in optimizer.layer_report()] == [6, 5, 4]


@pytest.mark.parametrize(
    "group",
    [
        {"params": [Parameter(torch.ones(5, 16))], "amend": False},
        {"params": [Parameter(torch.ones(5, 16))], "heads": [True]},
        {"params": [Parameter(torch.ones(5, 16), requires_grad=False)]},
        {"params": Parameter(torch.ones(5))},
    ],
)
def test_a_group_that_says_what_it_is_warns_of_nothing(group: dict[str, Any]) -> None:
    backbone, _ = head_and_backbone()
    named = [(str(place), param) for place, param in enumerate(backbone)]
    for params in (backbone, named):
        optimizer = ScaleAmendedSGD(params, head="plain")
        optimizer.add_param_group(dict(group))
        assert len(optimizer.param_groups[1]["params"]) == 1


def test_edits_just_before_a_group_is_added() -> None:
    """The ordinary exchange of a head, and a stage after it."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 9))
    optimizer = ScaleAmendedSGD(parameter_groups(model), head="plain")
    optimizer.param_groups[1]["params"][-1] = Parameter(torch.ones(5, 6))
    optimizer.add_param_group({"params": [("stage", Parameter(torch.ones(4, 3)))]})
    assert [(row.rows, row.scaled) for row in optimizer.layer_report()] == [(4, True), (8, True), (6, True), (5, False)]
    del optimizer.param_groups[1]["params"][-1]
    optimizer.add_param_group({"params": [Parameter(torch.ones(7, 6))]})
    assert [(row.rows, row.scaled) for row in optimizer.layer_report()] == [(4, True), (8, True), (6, True), (7, False)]


def test_a_network_that_is_unfrozen_stage_by_stage_is_silent() -> None:
    """An autoencoder: what its input takes, its output gives."""
    stages = [Parameter(torch.ones(*shape)) for shape in ((8, 10), (4, 8), (8, 4), (10, 8))]
    optimizer = ScaleAmendedSGD([stages[-1]])
    for stage in reversed(stages[:-1]):
        optimizer.add_param_group({"params": [stage]})
    assert [row.columns for row in optimizer.layer_report()] == [10, 8, 4, 8]


def test_a_new_head_after_unfreezing() -> None:
    layers = [Parameter(torch.ones(*shape)) for shape in ((8, 6), (12, 8), (16, 12), (10, 16))]
    optimizer = ScaleAmendedSGD([{"params": [layers[2]]}, {"params": [layers[3]]}], head="plain")
    optimizer.add_param_group({"params": [layers[1]]})
    optimizer.add_param_group({"params": [layers[0]]})
    del optimizer.param_groups[1]
    optimizer.add_param_group({"params": [Parameter(torch.ones(5, 16))]})
    report = optimizer.layer_report()
    assert [(row.rows, row.scaled) for row in report] == [(8, True), (12, True), (16, True), (5, False)]
    assert report[0].backward_factor == 5 / 8
