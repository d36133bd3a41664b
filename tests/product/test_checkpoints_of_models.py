"""A checkpoint is dealt out to the groups that `parameter_groups` makes of the same model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import through_file

pytestmark = pytest.mark.usefixtures("default_device")


class Tied(nn.Module):
    """Its first weight is used again at the end, so that `parameter_groups` has another order than the model."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.norm = nn.LayerNorm(4, elementwise_affine=bias)
        self.middle = nn.Linear(4, 4, bias=bias)
        self.last = nn.Linear(4, 4, bias=bias)
        self.last.weight = self.first.weight


@pytest.mark.parametrize("bias", [True, False], ids=["two groups", "one group"])
def test_one_group_is_dealt_out_to_the_groups_of_a_model(bias: bool) -> None:
    model = Tied(bias)
    sgd = SGD(model.named_parameters(), lr=0.2, momentum=0.9)
    for number, param in enumerate(model.parameters()):
        param.grad = torch.full_like(param, float(number + 1))
    sgd.step()
    optimizer = ScaleAmendedSGD(parameter_groups(model))
    names = [group["param_names"] for group in optimizer.param_groups]
    with pytest.warns(UserWarning, match="not of ScaleAmendedSGD"):
        optimizer.load_state_dict(through_file(sgd.state_dict()))
    assert len(optimizer.param_groups) == 1 + bias
    assert [group["param_names"] for group in optimizer.param_groups] == names
    for param in model.parameters():
        assert torch.equal(optimizer.state[param]["momentum_buffer"], sgd.state[param]["momentum_buffer"])
    again = ScaleAmendedSGD(parameter_groups(model))
    again.load_state_dict(through_file(optimizer.state_dict()))
    for param in model.parameters():
        assert torch.equal(again.state[param]["momentum_buffer"], sgd.state[param]["momentum_buffer"])


def test_groups_of_a_model_keep_what_they_know_of_the_layers() -> None:
    """Also where the checkpoint is ours, of one group without that knowledge."""
    model = nn.Sequential(nn.Embedding(7, 8), nn.Conv2d(8, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 3))
    simple = ScaleAmendedSGD(model.parameters(), lr=0.3)
    optimizer = ScaleAmendedSGD(parameter_groups(model))
    optimizer.load_state_dict(through_file(simple.state_dict()))
    plain, amended = optimizer.param_groups
    assert (plain["lr"], amended["lr"]) == (0.3, 0.3)
    assert (plain["amend"], amended["amend"]) == (False, True)
    assert (amended["rows"], amended["columns"]) == ([6, 4], [8, 6])


def test_groups_that_amended_fewer_weights_are_dealt_out_too() -> None:
    """As of a checkpoint from before attention's projections were amended."""
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 3))
    named = list(model.named_parameters())
    old = [
        {"params": [named[place] for place in places], "amend": amend, "model_order": places, "lr": lr, **sizes}
        for places, amend, lr, sizes in (
            ([0, 1, 3, 5], False, 0.5, {}),
            ([2, 4], True, 0.1, {"rows": [4, 3], "columns": [4, 4]}),
        )
    ]
    before = ScaleAmendedSGD(old, momentum=0.9)
    for number, (_, param) in enumerate(named):
        param.grad = torch.full_like(param, float(number + 1))
    before.step()
    optimizer = ScaleAmendedSGD(parameter_groups(model))
    optimizer.load_state_dict(through_file(before.state_dict()))
    plain, amended = optimizer.param_groups
    assert (plain["lr"], amended["lr"], amended["rows"]) == (0.5, 0.1, [12, 4, 3])
    for param in model.parameters():
        assert torch.equal(optimizer.state[param]["momentum_buffer"], before.state[param]["momentum_buffer"])
