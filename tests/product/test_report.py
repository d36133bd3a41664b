"""The layer report says what a step would do, and marks what deserves a look."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from sasgd_fused import LayerReport, LayerRow, ScaleAmendedSGD, parameter_groups
from tests.helpers import backends

pytestmark = pytest.mark.usefixtures("default_device")


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("decay", ["amended", "shape"])
def test_the_figures_are_those_of_the_next_step(backend: str, decay: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))
    options = {"lr": 0.01, "weight_decay": 0.1, "decay": decay, "backend": backend}
    optimizer = ScaleAmendedSGD(parameter_groups(model), **options)
    report = optimizer.layer_report()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    for row in report:
        param, old = model.get_parameter(row.name), before[row.name]
        assert param.grad is not None
        torch.testing.assert_close(
            param.detach(), (1 - row.decay_per_step) * old - row.effective_lr * param.grad, rtol=1e-5, atol=1e-6
        )
        assert row.row_norm_sq == pytest.approx(float(old.square().sum()) / row.rows, rel=1e-6)
        assert row.column_norm_sq == pytest.approx(float(old.square().sum()) / row.columns, rel=1e-6)


def two_layers() -> LayerReport:
    params = [("body", Parameter(torch.zeros(4, 3))), ("head", Parameter(torch.full((2, 4), 3.0)))]
    return ScaleAmendedSGD(params, lr=0.1, weight_decay=0.2).layer_report()


@pytest.mark.parametrize("written", [str, repr])
def test_it_prints_as_a_table_with_marks(written: Callable[[object], str]) -> None:
    """At the end of a notebook's cell too, which shows the repr."""
    report = two_layers()
    body, head = report
    assert body.marks == ["at the eps floor", "effective lr 100 times below the median"]
    assert head.marks == ["decay per step over 0.5"]
    lines = written(report).splitlines()
    assert lines[0].split() == [
        *("name", "rows", "columns", "row_norm_sq", "column_norm_sq", "backward_factor", "layer_scale"),
        *("effective_lr", "decay_per_step", "marks"),
    ]
    assert lines[1].endswith("at the eps floor; effective lr 100 times below the median")
    assert lines[2].split()[:4] == ["head", "2", "4", "36"]
    assert written(LayerReport()).split() == lines[0].split()


def test_it_is_a_table_of_html_in_a_notebook() -> None:
    class Cells(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[list[str]] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag == "tr":
                self.lines.append([])
            elif tag in ("th", "td"):
                self.lines[-1].append("")

        def handle_data(self, data: str) -> None:
            if data.strip():
                self.lines[-1][-1] += data

    name = '<b onclick="x">&amp;'
    report = ScaleAmendedSGD([(name, Parameter(torch.ones(2, 3)))], lr=0.25).layer_report()
    text = report._repr_html_()
    assert "<b" not in text
    cells = Cells()
    cells.feed(text)
    columns, row = cells.lines
    assert columns == str(report).splitlines()[0].split()
    assert row == [name, "2", "3", "3", "2", "1", "3", "0.75", "0", ""]


def test_a_layer_far_below_the_median_rate_is_marked() -> None:
    """By its rate, in which a group's learning rate counts; what is not scaled has the rate that it was given."""

    def marked(lrs: list[float], **options: Any) -> list[bool]:
        groups = [{"params": [Parameter(torch.ones(2, 1))], "lr": lr} for lr in lrs]
        return [row.at_small_lr for row in ScaleAmendedSGD(groups, **options).layer_report()]

    assert marked([0.09, 10.0, 0.11, 20.0, 10.0]) == [True, False, False, False, False]
    assert marked([10.0, 10.0, 0.01], head="plain") == [False, False, False]
    assert marked([0.0, 0.0]) == [False, False]
    params = [Parameter(torch.full((2, 1), value)) for value in (1.0, 20.0, float("nan"), 20.0, float("inf"))]
    report = ScaleAmendedSGD(params).layer_report()
    assert [row.at_small_lr for row in report] == [True, False, False, False, False]
    assert [row.marks for row in report[1:]] == [[], ["norm not finite"]] * 2


def test_a_slice_is_a_report() -> None:
    report = two_layers()
    assert isinstance(report[0], LayerRow)
    assert isinstance(report[1:], LayerReport)
    assert str(report[1:]).splitlines()[1].startswith("head")
    assert report[::-1] == (report[1], report[0])
    assert report[0].at_small_lr and report[:1][0].at_small_lr


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda report: pickle.loads(pickle.dumps(report))])
def test_it_is_copied(again: Callable[[LayerReport], LayerReport]) -> None:
    report = two_layers()
    assert type(again(report)) is LayerReport
    assert again(report) == report


@pytest.mark.parametrize("backend", backends())
def test_it_gives_scalars_and_plain_values(backend: str) -> None:
    params = [("0.weight", Parameter(torch.ones(4, 3))), ("1.weight", Parameter(torch.ones(2, 4)))]
    report = ScaleAmendedSGD(params, lr=0.25, weight_decay=0.5, backend=backend).layer_report()
    wanted = {
        "row_norm_sq": (3.0, 4.0),
        "layer_scale": (6.0, 4.0),
        "effective_lr": (1.5, 1.0),
        "decay_per_step": (0.75, 0.5),
    }
    assert report.scalars() == pytest.approx(
        {f"{column}/{place}.weight": value for column, values in wanted.items() for place, value in enumerate(values)}
    )
    assert all(type(value) is float for value in report.scalars().values())
    assert [LayerRow(**row) for row in json.loads(json.dumps(report.to_dicts()))] == list(report)


def test_scalars_of_layers_with_one_name_stay_apart() -> None:
    """As of two models in one optimizer, whose parameters have the same names."""
    names = ["a", "a", "a_2", "a"]
    groups = [{"params": [(name, Parameter(torch.ones(2, 2)))]} for name in names]
    scalars = ScaleAmendedSGD(groups).layer_report().scalars()
    assert [key for key in scalars if key.startswith("layer_scale")] == [
        *("layer_scale/a", "layer_scale/a_3", "layer_scale/a_2", "layer_scale/a_4")
    ]


def test_an_unscaled_layer_has_the_plain_steps_figures() -> None:
    groups = [{"params": [Parameter(torch.zeros(4, 3))], "amend": False}, {"params": [Parameter(torch.ones(2, 4))]}]
    (row, _) = ScaleAmendedSGD(groups, lr=0.1, weight_decay=0.2).layer_report()
    assert (row.layer_scale, row.effective_lr, row.marks) == (1.0, 0.1, [])
    assert row.decay_per_step == pytest.approx(0.02)


@pytest.mark.parametrize("backend", backends())
def test_it_follows_parameters_that_were_replaced(backend: str) -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], backend=backend)
    weight.data = torch.full((3, 4), 2.0)
    (row,) = optimizer.layer_report()
    assert (row.rows, row.columns) == (3, 4)
    assert row.row_norm_sq == pytest.approx(16.0)
