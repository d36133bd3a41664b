"""n_B: the rows of the head, of the largest head, a given number, or the mean rows of the hidden layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import backends

pytestmark = pytest.mark.usefixtures("default_device")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.LayerNorm(12), nn.Linear(12, 6), nn.Linear(6, 3))


def test_the_mean_rows_of_the_hidden_layers() -> None:
    optimizer = ScaleAmendedSGD(parameter_groups(network()), head="plain", output_width="mean")
    assert [row.backward_factor for row in optimizer.layer_report()] == [9 / 12, 9 / 6, 9 / 3]


def test_it_is_the_rule_of_thumb() -> None:
    """Learning rates and decays of the hidden layers are those of n_B / (mean rows) times SGD's; the head has SGD's."""
    options = {"norms": "freeze", "head": "plain", "decay": "shape"}
    by_hand = ScaleAmendedSGD(parameter_groups(network()), lr=0.1 * 3 / 9, weight_decay=0.01, **options)
    built_in = ScaleAmendedSGD(parameter_groups(network()), lr=0.1, weight_decay=0.01, output_width="mean", **options)
    rows = list(zip(by_hand.layer_report(), built_in.layer_report(), strict=True))
    for ours, theirs in rows[:-1]:
        assert ours.effective_lr == pytest.approx(theirs.effective_lr)
        assert ours.decay_per_step == pytest.approx(theirs.decay_per_step)
    assert rows[-1][1].effective_lr == 0.1


def test_it_is_that_of_the_network_at_construction() -> None:
    """A stage that is unfrozen changes no scale of the others."""
    optimizer = ScaleAmendedSGD([Parameter(torch.ones(8, 4)), Parameter(torch.ones(2, 8))], output_width="mean")
    optimizer.add_param_group({"params": [Parameter(torch.ones(4, 3))]})
    assert [row.backward_factor for row in optimizer.layer_report()] == [2.0, 1.0, 4.0]
    optimizer = ScaleAmendedSGD(parameter_groups(network(), heads=["2", "3"]), output_width="mean")
    optimizer.add_param_group({"params": [("new", Parameter(torch.ones(4, 3)))]})
    assert [row.backward_factor for row in optimizer.layer_report()] == [3.0, 1.0, 2.0, 4.0]


def test_without_hidden_layers_it_is_the_head() -> None:
    optimizer = ScaleAmendedSGD([Parameter(torch.ones(3, 4)), Parameter(torch.ones(3))], output_width="mean")
    assert optimizer.layer_report()[0].backward_factor == 1.0


@pytest.mark.parametrize("backend", backends())
def test_several_heads_are_plain_and_the_largest_counts(backend: str) -> None:
    groups = parameter_groups(network(), heads=["2", "3"])
    optimizer = ScaleAmendedSGD(groups, lr=0.1, head="plain", backend=backend)
    facts = [(row.scaled, row.backward_factor) for row in optimizer.layer_report()]
    assert facts == [(True, 6 / 12), (False, 1.0), (False, 2.0)]
    weight = optimizer.param_groups[1]["params"][1]
    before = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight, before - 0.1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert [row.scaled for row in optimizer.layer_report()] == [True, False, False]


@pytest.mark.parametrize("heads", ["last", 3, [True], [1, 0, 0]])
def test_heads_that_are_no_flags_are_refused(heads: object) -> None:
    groups = parameter_groups(network())
    groups[1]["heads"] = heads
    with pytest.raises(ValueError, match=r"heads: got .* for 3 parameters, want True or False for each, or None"):
        ScaleAmendedSGD(groups)
