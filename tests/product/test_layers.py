"""`parameter_groups` and the rows and columns of groups."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from sasgd_fused import ScaleAmendedSGD, parameter_groups

pytestmark = pytest.mark.usefixtures("default_device")


class Network(nn.Module):
    """One of everything, and a loose parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.position = nn.Parameter(torch.ones(1, 4, 8))
        self.conv = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8)
        self.norm = nn.BatchNorm2d(16)
        self.transposed = nn.ConvTranspose2d(16, 6, 2, groups=2)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(6, 5)


def test_types_decide_what_is_amended() -> None:
    plain, amended = parameter_groups(Network())
    assert [name for name, _ in amended["params"]] == [
        *("conv.weight", "depthwise.weight", "transposed.weight", "attention.in_proj_weight"),
        *("attention.out_proj.weight", "head.weight"),
    ]
    assert "amend" not in plain or plain["amend"] is False
    named = dict(Network().named_parameters())
    assert {name for name, _ in plain["params"]} == set(named) - {name for name, _ in amended["params"]}


def test_grouped_and_transposed_convolutions_have_their_true_rows_and_columns() -> None:
    rows = {row.name: row for row in ScaleAmendedSGD(parameter_groups(Network())).layer_report()}
    assert (rows["depthwise.weight"].rows, rows["depthwise.weight"].columns) == (16, 8)
    assert (rows["transposed.weight"].rows, rows["transposed.weight"].columns) == (6, 16)
    assert (rows["conv.weight"].rows, rows["conv.weight"].columns) == (8, 3)


def test_the_head_is_the_last_amended_weight() -> None:
    rows = ScaleAmendedSGD(parameter_groups(Network()), head="plain").layer_report()
    assert rows[-1].name == "head.weight"
    assert rows[-1].layer_scale == 1
    embedding = next(row for row in rows if row.name == "embedding.weight")
    assert embedding.layer_scale == 1


def test_without_groups_the_shape_decides() -> None:
    network = Network()
    names = [row.name for row in ScaleAmendedSGD(network.named_parameters()).layer_report()]
    assert names == [name for name, param in network.named_parameters() if param.dim() >= 2]


def test_a_tied_weight_stands_where_it_is_used_last() -> None:
    tied = nn.Sequential(OrderedDict(encoder=nn.Embedding(9, 4), hidden=nn.Linear(4, 4), decoder=nn.Linear(4, 9)))
    tied.decoder.weight = tied.encoder.weight
    plain, amended = parameter_groups(tied)
    assert [name for name, _ in amended["params"]] == ["hidden.weight", "encoder.weight"]
    assert [name for name, _ in plain["params"]] == ["hidden.bias", "decoder.bias"]
    assert (amended["rows"], amended["columns"]) == ([4, 9], [4, 4])

    last = nn.Sequential(OrderedDict(first=nn.Linear(4, 9), middle=nn.Linear(9, 9), last=nn.Embedding(9, 4)))
    last.last.weight = last.first.weight
    _, amended = parameter_groups(last)
    assert [name for name, _ in amended["params"]] == ["middle.weight"]


def test_every_parameter_is_there_once_frozen_ones_too() -> None:
    network = Network()
    network.conv.requires_grad_(False)
    groups = parameter_groups(network)
    params = [param for group in groups for _, param in group["params"]]
    assert {id(param) for param in params} == {id(param) for param in network.parameters()}
    assert len(params) == len(list(network.parameters()))
    order = list(network.parameters())
    for group in groups:
        assert all(
            order[place] is param for place, (_, param) in zip(group["model_order"], group["params"], strict=True)
        )


@pytest.mark.parametrize("module", [nn.Linear(3, 2, bias=False), nn.BatchNorm1d(3)])
def test_one_kind_makes_one_group(module: nn.Module) -> None:
    (group,) = parameter_groups(module)
    optimizer = ScaleAmendedSGD([group])
    assert len(optimizer.layer_report()) == isinstance(module, nn.Linear)


def test_torch_optimizers_take_the_groups_too() -> None:
    network = Network()
    optimizer = torch.optim.SGD(parameter_groups(network), lr=0.1)
    assert len(optimizer.param_groups) == 2


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model: got ReLU without parameters, want at least one"):
        parameter_groups(nn.ReLU())


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model: got a generator, want an nn\.Module"):
        parameter_groups(nn.Linear(2, 2).parameters())


def test_rows_and_columns_of_a_group() -> None:
    weight = nn.Parameter(torch.ones(8, 2, 3))
    (row,) = ScaleAmendedSGD([{"params": [weight], "columns": 16}]).layer_report()
    assert (row.rows, row.columns, row.row_norm_sq, row.column_norm_sq) == (8, 16, 6.0, 3.0)
    (row,) = ScaleAmendedSGD([{"params": [weight], "rows": [2], "columns": [None]}]).layer_report()
    assert (row.rows, row.columns, row.row_norm_sq) == (2, 2, 24.0)


def test_options_of_a_group_may_change_between_steps() -> None:
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = ScaleAmendedSGD([{"params": [weight]} for weight in weights], lr=1.0)
    optimizer.param_groups[0]["amend"] = False
    for weight in weights:
        weight.grad = torch.full((2, 2), 0.25)
    optimizer.step()
    assert weights[0][0, 0].item() == 0.75
    assert weights[1][0, 0].item() == 0.5  # s = S / n_B = 2
