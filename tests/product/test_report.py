"""The layer report says what a step would do, and marks what deserves a look."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD, parameter_groups
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


def test_it_prints_as_a_table_with_marks() -> None:
    params = [("body", Parameter(torch.zeros(4, 3))), ("head", Parameter(torch.full((2, 4), 3.0)))]
    optimizer = ScaleAmendedSGD(params, lr=0.1, weight_decay=0.2)
    body, head = optimizer.layer_report()
    assert body.marks == ["at the eps floor"]
    assert head.marks == ["decay per step over 0.5"]
    lines = str(optimizer.layer_report()).splitlines()
    assert lines[0].split() == [
        *("name", "rows", "columns", "row_norm_sq", "column_norm_sq", "backward_factor", "layer_scale"),
        *("effective_lr", "decay_per_step", "marks"),
    ]
    assert lines[1].endswith("at the eps floor")
    assert lines[2].split()[:4] == ["head", "2", "4", "36"]


def test_an_unscaled_block_has_the_plain_steps_figures() -> None:
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
