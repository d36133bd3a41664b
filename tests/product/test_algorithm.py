"""The algorithm is the paper's: cases computed by hand, the factor rules, and what follows from the equations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, Case, assert_close, backends, randn

pytestmark = pytest.mark.usefixtures("default_device")


def weights() -> list[Parameter]:
    """Two layers whose widths match: S_1 = 7 over 2 rows, S_2 = 5 over 1 row."""
    first = Parameter(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]]))
    second = Parameter(torch.tensor([[1.0, 2.0]]))
    first.grad = torch.tensor([[1.0, -1.0, 2.0], [0.5, 0.0, 1.0]])
    second.grad = torch.tensor([[2.0, -2.0]])
    return [first, second]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(
    ("options", "scales", "decays"),
    [
        # m = 1; s_2 = 5 / 1 / 1; m = 1 / 2; s_1 = (7 / 2) / (1 / 2) = S_1 / n_B
        ({}, (7.0, 5.0), (0.7, 0.5)),
        ({"factors": "product"}, (7.0, 5.0), (0.7, 0.5)),
        ({"decay": "shape"}, (7.0, 5.0), (0.2, 0.1)),
        ({"head": "plain"}, (7.0, 1.0), (0.7, 0.1)),
        ({"head": "plain", "decay": "shape"}, (7.0, 1.0), (0.2, 0.1)),
        # n_B = 4, so m_2 = 4 / 1 and m_1 = 4 / 2
        ({"output_width": 4}, (1.75, 1.25), (0.175, 0.125)),
        ({"output_width": 4, "factors": "product"}, (1.75, 1.25), (0.175, 0.125)),
        # the floor lifts ‖W_2‖² = 5 to 6; ‖W_1‖² = 3.5 to 6
        ({"eps": 6.0}, (12.0, 6.0), (1.2, 0.6)),
    ],
)
def test_a_step_computed_by_hand(
    backend: str, options: dict[str, Any], scales: tuple[float, float], decays: tuple[float, float]
) -> None:
    params = weights()
    expected = [
        p.detach() - 0.01 * (scale * p.grad + decay * p.detach())
        for p, scale, decay in zip(params, scales, decays, strict=True)
    ]
    optimizer = ScaleAmendedSGD(params, lr=0.01, weight_decay=0.1, backend=backend, **options)
    assert [row.layer_scale for row in optimizer.layer_report()] == pytest.approx(scales, rel=1e-12)
    optimizer.step()
    for param, want in zip(params, expected, strict=True):
        assert_close(param, want, torch.float32)


@pytest.mark.parametrize("backend", backends())
def test_two_steps_with_momentum_computed_by_hand(backend: str) -> None:
    """One weight of 2, gradient 1: the scale is the square of the weight, momentum comes last."""
    param = Parameter(torch.tensor([[2.0]]))
    optimizer = ScaleAmendedSGD([param], lr=0.125, momentum=0.5, backend=backend)
    param.grad = torch.ones(1, 1)
    optimizer.step()  # s = 4, buf = 4, W = 2 - 0.5
    assert param.item() == 1.5
    optimizer.step()  # s = 2.25, buf = 0.5 * 4 + 2.25, W = 1.5 - 4.25 / 8
    assert param.item() == 1.5 - 4.25 / 8


def test_product_follows_the_order_where_widths_do_not_match() -> None:
    """A convolution of 2 channels flattened to 8 inputs: the product sees 8 columns, the width rule 2 rows."""
    params = [Parameter(torch.ones(2, 3, 2, 2)), Parameter(torch.ones(1, 8))]
    product = ScaleAmendedSGD(params, factors="product", backend="reference").layer_report()
    width = ScaleAmendedSGD(params, factors="width", backend="reference").layer_report()
    assert [row.backward_factor for row in product] == [1 / 8, 1.0]
    assert [row.backward_factor for row in width] == [1 / 2, 1.0]
    assert product[0].layer_scale == pytest.approx((24 / 2) / (1 / 8))


def test_columns_of_a_convolution_are_its_input_channels() -> None:
    (row, _) = ScaleAmendedSGD([Parameter(torch.ones(8, 3, 5, 5)), Parameter(torch.ones(10, 8))]).layer_report()
    assert (row.rows, row.columns) == (8, 3)
    assert row.row_norm_sq == pytest.approx(75)
    assert row.column_norm_sq == pytest.approx(200)


def test_the_product_telescopes_where_widths_match() -> None:
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (8, 32), (10, 8)]
    params = [Parameter(randn(shape)) for shape in shapes]
    product = ScaleAmendedSGD(params, factors="product", backend="reference").layer_report()
    width = ScaleAmendedSGD(params, factors="width", backend="reference").layer_report()
    for a, b, param in zip(product, width, params, strict=True):
        total = float(param.detach().double().square().sum())
        assert a.layer_scale == pytest.approx(b.layer_scale, rel=1e-14)
        assert b.layer_scale == pytest.approx(total / 10, rel=1e-14)  # S_b / n_B


@pytest.mark.parametrize("backend", backends())
def test_factors_from_a_mapping(backend: str) -> None:
    params = weights()
    named = [("first", params[0]), ("second", params[1])]
    by_name = ScaleAmendedSGD(named, backend=backend, factors={"first": 0.25, "second": 2.0, "elsewhere": 1.0})
    assert [row.layer_scale for row in by_name.layer_report()] == pytest.approx([3.5 / 0.25, 5 / 2])
    expected = [p.detach() - 1e-3 * s * p.grad for p, s in zip(params, (14, 2.5), strict=True)]
    by_name.step()
    for param, want in zip(params, expected, strict=True):
        assert_close(param, want, torch.float32)
    by_param = ScaleAmendedSGD(params, backend=backend, factors={params[0]: 0.25, params[1]: 2.0})
    assert [row.backward_factor for row in by_param.layer_report()] == [0.25, 2.0]


@pytest.mark.parametrize("backend", backends())
def test_unamended_layers_keep_their_place(backend: str) -> None:
    """The middle layer takes a plain step, and the first still sees its rows and columns."""
    params = [Parameter(torch.ones(shape)) for shape in ((4, 3), (2, 4), (1, 5))]
    groups: list[dict[str, Any]] = [
        {"params": params[:1]},
        {"params": params[1:2], "amend": False},
        {"params": params[2:]},
    ]
    rows = ScaleAmendedSGD(groups, backend=backend, factors="product").layer_report()
    assert [row.backward_factor for row in rows] == [1 / 5 * 2 / 4, 1 / 5, 1]
    assert rows[1].layer_scale == 1


@pytest.mark.parametrize("backend", backends())
def test_a_layer_of_zeros_can_move(backend: str) -> None:
    params = [Parameter(torch.zeros(4, 3)), Parameter(torch.ones(2, 4))]
    optimizer = ScaleAmendedSGD(params, lr=1.0, backend=backend)
    params[0].grad = torch.ones(4, 3)
    optimizer.step()
    assert_close(params[0], torch.full((4, 3), -1e-3 * 4 / 2), torch.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_zero_or_broken_layer_does_not_poison_the_others(backend: str, bad: float) -> None:
    params = [Parameter(torch.full(shape, value)) for shape, value in (((4, 3), 1.0), ((2, 4), bad), ((2, 2), 1.0))]
    optimizer = ScaleAmendedSGD(params, lr=0.1, backend=backend, factors="product")
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert_close(params[0], torch.full((4, 3), 1 - 0.1 * 3 / (2 / 4)), torch.float32)
    assert_close(params[2], torch.full((2, 2), 1 - 0.1 * 2), torch.float32)


def bn_chain() -> nn.Sequential:
    with torch.device("cpu"):  # whose random numbers are the same everywhere
        chain = nn.Sequential(
            *(nn.Linear(6, 12, bias=False), nn.BatchNorm1d(12, affine=False, eps=1e-30), nn.ReLU()),
            *(nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8, affine=False, eps=1e-30), nn.ReLU()),
            nn.Linear(8, 3, bias=False),
        )
    return chain.to(DEVICE, torch.float64)


def train(model: nn.Module, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    inputs = randn((32, 6), generator, torch.float64)
    labels = torch.randint(0, 3, (32,), generator=generator, device="cpu").to(DEVICE)
    optimizer = ScaleAmendedSGD(parameter_groups(model), backend="reference", **options)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model(inputs).detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("options", "invariant"),
    [
        ({"lr": 0.05}, True),
        ({"lr": 0.05, "momentum": 0.9, "nesterov": True}, True),
        ({"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01, "decay": "shape"}, True),
        ({"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01, "decay": "amended"}, False),
    ],
)
@pytest.mark.parametrize("norms", ["track", "freeze"])
def test_training_is_invariant_to_the_scale_of_normalised_layers(
    options: dict[str, Any], invariant: bool, norms: str
) -> None:
    torch.manual_seed(0)
    model, rescaled = bn_chain(), bn_chain()
    rescaled.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.no_grad():
        rescaled[0].weight.mul_(10.0)
        rescaled[3].weight.mul_(0.1)
    before, after = train(model, norms=norms, **options), train(rescaled, norms=norms, **options)
    moved = float((before - after).abs().max() / before.abs().max())
    assert moved < 1e-12 if invariant else moved > 1e-6


@pytest.mark.parametrize("backend", backends())
def test_late_groups_stand_at_the_input_end(backend: str) -> None:
    """Unfreezing from the head down: the head and n_B stay those of construction."""
    params = [Parameter(torch.ones(shape)) for shape in ((4, 3), (2, 4), (5, 2))]
    optimizer = ScaleAmendedSGD(params[2:], backend=backend, factors="product", head="plain")
    optimizer.add_param_group({"params": params[1:2]})
    optimizer.add_param_group({"params": params[:1]})
    rows = optimizer.layer_report()
    assert [row.name for row in rows] == ["parameter 0 of group 2", "parameter 0 of group 1", "parameter 0 of group 0"]
    assert [row.backward_factor for row in rows] == [5 / 2 * 2 / 4, 5 / 2, 1]
    assert [row.layer_scale == 1 for row in rows] == [False, False, True]


@pytest.mark.parametrize("backend", backends())
def test_no_layers_at_all(backend: str) -> None:
    params, optimizer = Case([(5,), (0,)], options={"lr": 0.1, "momentum": 0.9}).run(backend)
    assert optimizer.layer_report() == ()
    late = Parameter(torch.ones(2, 3))
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones(2, 3)
    optimizer.step()  # the first layers bring the head: n_B = 2, s = S / n_B = 3
    assert_close(late, torch.full((2, 3), 1 - 0.1 * 3), torch.float32)
    assert params[0].isfinite().all()
