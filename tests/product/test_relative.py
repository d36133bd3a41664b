"""The relative scale is what the equations say, on every backend, also where a gradient's norm is not known before."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, Case, assert_close, backends, message, randn, states_of

pytestmark = pytest.mark.usefixtures("default_device")
EVERY = pytest.mark.parametrize("backend", backends())


@EVERY
def test_three_steps_computed_by_hand(backend: str) -> None:
    """One weight of 2: f = B = 1, so a step is lr ‖W‖ / √v times the gradient, with the v of the steps before."""
    param = Parameter(torch.tensor([[2.0]]))
    optimizer = ScaleAmendedSGD([param], lr=0.5, scale="relative", backend=backend)
    param.grad = torch.ones(1, 1)
    optimizer.step()  # v = q = 1, s = 2
    assert param.item() == 1.0
    param.grad = torch.full((1, 1), 3.0)
    optimizer.step()  # s = 1; afterwards v = 0.9 + 0.1 * 9
    assert param.item() == -0.5
    assert states_of(optimizer, [param])[0]["gradient_norm_sq"] == pytest.approx(1.8, rel=1e-12)
    param.grad = torch.ones(1, 1)
    optimizer.step()
    assert param.item() == pytest.approx(-0.5 - 0.25 / math.sqrt(1.8), rel=1e-6)


def scales_of(params: list[Parameter], weight_decay: float, decay: str, depth: int) -> list[tuple[float, float]]:
    """(s, d) of each parameter's first step, from the equations."""
    scales = []
    for param in params:
        grad, weight = param.grad, param.detach().double()
        assert grad is not None
        is_matrix = param.dim() >= 2
        decays_first = is_matrix and decay == "amended"
        g = grad.double() + (weight_decay * weight if decays_first else 0)
        gradient_norm = math.sqrt(depth) * float(g.norm())
        if is_matrix:
            scale = float(weight.norm()) / math.sqrt(param.numel() / param.shape[0]) / gradient_norm
        else:
            scale = 0.03 * math.sqrt(param.numel()) / gradient_norm
        scales.append((scale, weight_decay * (scale if decays_first else 1)))
    return scales


@EVERY
@pytest.mark.parametrize("decay", ["amended", "shape"])
@pytest.mark.parametrize("depth", [None, 7])
def test_a_step_of_layers_and_vectors(depth: int | None, decay: Any, backend: str) -> None:
    """A linear layer, a grouped convolution of 2 groups, their biases, a factor."""
    case = Case([(5, 3), (5,), (4, 2, 3, 3), (4,), ()])
    params = case.params()
    case.set_grads(params, 0)
    scales = scales_of(params, 0.1, decay, depth or 2)
    expected = [(p.detach() - 0.3 * (s * p.grad + d * p.detach()), s) for p, (s, d) in zip(params, scales, strict=True)]
    optimizer = ScaleAmendedSGD(
        params, lr=0.3, weight_decay=0.1, scale="relative", decay=decay, depth=depth, backend=backend
    )
    optimizer.step()
    for param, (want, _) in zip(params, expected, strict=True):
        assert_close(param, want, torch.float32)


@EVERY
def test_neither_the_loss_nor_the_weights_have_a_unit(backend: str) -> None:
    """A loss times 1000 takes the same steps; weights times 100, whose gradients are a hundredth, steps times 100."""
    ends = []
    for loss, size in ((1.0, 1.0), (1000.0, 1.0), (1.0, 100.0)):
        case = Case([(5, 3), (4, 5)], options={"lr": 0.3, "momentum": 0.9, "scale": "relative"})
        params = case.params()
        with torch.no_grad():
            for param in params:
                param.mul_(size)
        optimizer = case.optimizer(params, backend)
        for step in range(4):
            case.set_grads(params, step)
            for param in params:
                assert param.grad is not None
                param.grad *= loss / size
            optimizer.step()
        ends.append([param.detach() / size for param in params])
    for other in ends[1:]:
        for a, e in zip(other, ends[0], strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def steps(backend: str, grads: list[list[Tensor | None]], **options: Any) -> tuple[list[Parameter], ScaleAmendedSGD]:
    params = Case([(3, 4), (3,)]).params()
    optimizer = ScaleAmendedSGD(params, lr=0.3, scale="relative", backend=backend, **options)
    for of_step in grads:
        for param, grad in zip(params, of_step, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()
    return params, optimizer


@EVERY
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("first", ["none", "zeros"])
def test_a_gradient_that_comes_late(first: str, momentum: float, backend: str) -> None:
    """Its own norm is what it is divided by first, as at the first step of all."""
    generator = torch.Generator().manual_seed(0)
    matrix, vector, later = (randn(shape, generator) for shape in ((3, 4), (3,), (3,)))
    early = None if first == "none" else torch.zeros(3, device=DEVICE)
    late, optimizer = steps(
        backend, [[matrix, early], [matrix, early], [matrix, vector], [matrix, later]], momentum=momentum
    )
    fresh, other = steps(backend, [[matrix, vector], [matrix, later]], momentum=momentum)
    assert_close(late[1], fresh[1], torch.float32)
    ours, theirs = states_of(optimizer, late)[1], states_of(other, fresh)[1]
    assert ours["gradient_norm_sq"] == pytest.approx(theirs["gradient_norm_sq"], rel=1e-6)


@EVERY
def test_a_gradient_of_zeros_moves_nothing(backend: str) -> None:
    zeros: list[Tensor | None] = [torch.zeros(3, 4, device=DEVICE), torch.zeros(3, device=DEVICE)]
    params, optimizer = steps(backend, [zeros, zeros])
    for param, before in zip(params, Case([(3, 4), (3,)]).params(), strict=True):
        assert torch.equal(param, before)
    assert not any(state.get("gradient_norm_sq") for state in states_of(optimizer, params))


@EVERY
def test_zeros_in_between_do_not_raise_the_scale(backend: str) -> None:
    """A scale that went on falling would make the next step as much longer."""
    generator = torch.Generator().manual_seed(0)
    grad, zeros = randn((3, 4), generator), torch.zeros(3, 4, device=DEVICE)
    idle: list[list[Tensor | None]] = [[zeros, None]] * 20
    params, optimizer = steps(backend, [[grad, None], *idle])
    (expected, _), other = steps(backend, [[grad, None]])
    assert torch.equal(params[0], expected)
    assert states_of(optimizer, params)[0] == states_of(other, [expected])[0]


@EVERY
def test_a_gradient_that_is_not_finite_leaves_the_norm(backend: str) -> None:
    """Weights put right afterwards go on with the norm of the steps before."""
    generator = torch.Generator().manual_seed(0)
    grad, vector = randn((3, 4), generator), randn((3,), generator)
    params, optimizer = steps(backend, [[grad, vector]])
    before = states_of(optimizer, params)[0]["gradient_norm_sq"]
    params[0].grad = torch.full((3, 4), math.inf, device=DEVICE)
    optimizer.step()
    assert states_of(optimizer, params)[0]["gradient_norm_sq"] == before


@EVERY
def test_a_vanishing_gradient_is_not_scaled_by_infinity(backend: str) -> None:
    """Its norm is there in float64, where 1 / √v is more than float32 holds; a kernel takes it for zeros."""
    tiny = torch.full((3, 4), 1e-44, device=DEVICE)
    params, _ = steps(backend, [[tiny, None], [tiny, None]])
    assert params[0].isfinite().all()


@EVERY
def test_what_is_no_layer_is_a_vector(backend: str) -> None:
    """An embedding has `amend=False`; it is scaled by its own gradient, and counts in no depth."""
    ends = []
    for shape in ((6, 2), (12,)):
        params = [
            Parameter(randn((4, 3), torch.Generator().manual_seed(0))),
            Parameter(torch.ones(shape, device=DEVICE)),
        ]
        groups = [{"params": [params[1]], "amend": False}, {"params": [params[0]]}]
        optimizer = ScaleAmendedSGD(groups, lr=0.3, weight_decay=0.1, scale="relative", backend=backend)
        for param in params:
            param.grad = torch.ones_like(param) / 2
        optimizer.step()
        ends.append([param.detach().flatten() for param in params])
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


@EVERY
def test_a_plain_head_takes_the_plain_step(backend: str) -> None:
    params = [Parameter(torch.ones(4, 3)), Parameter(torch.ones(2, 4))]
    optimizer = ScaleAmendedSGD(params, lr=0.5, head="plain", scale="relative", backend=backend)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert params[1].eq(0.5).all()
    assert torch.allclose(params[0], torch.tensor(1 - 0.5 / math.sqrt(3)))  # B = 1: the head does not count
    assert [row.scaled for row in optimizer.layer_report()] == [True, False]


@EVERY
def test_state_that_somebody_empties_or_edits(backend: str) -> None:
    """A norm that is taken away is measured anew; one that is put in is used."""
    case = Case([(3, 4), (3,)], options={"lr": 0.3, "scale": "relative"})
    emptied, fresh = case.params(), case.params()
    optimizer = case.optimizer(emptied, backend)
    case.set_grads(emptied, 0)
    optimizer.step()
    with torch.no_grad():
        for param, start in zip(emptied, fresh, strict=True):
            param.copy_(start)
    optimizer.state.clear()
    other = case.optimizer(fresh, backend)
    for params, each in ((emptied, optimizer), (fresh, other)):
        case.set_grads(params, 1)
        each.step()
    for a, e in zip(emptied, fresh, strict=True):
        assert torch.equal(a, e)

    optimizer.state_dict()  # brings the state up to date
    before = emptied[0].detach().clone()
    optimizer.state[emptied[0]]["gradient_norm_sq"] = 1e12
    optimizer.step()
    assert (emptied[0] - before).abs().max() < 1e-5


def test_the_depth_is_that_of_the_whole_network() -> None:
    """Frozen layers count, and so do those that are added later."""
    params = Case([(4, 3), (4, 4), (2, 4)]).params()
    params[1].requires_grad_(False)
    optimizer = ScaleAmendedSGD(params[1:], lr=0.1, scale="relative", backend="reference")
    depths = [backend.plan.depth for backend in optimizer._current_backends()]
    optimizer.add_param_group({"params": [params[0]]})
    assert (depths, [backend.plan.depth for backend in optimizer._current_backends()]) == ([2], [3])


@EVERY
def test_the_report(backend: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(DEVICE)
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.3, scale="relative", backend=backend)
    assert math.isnan(optimizer.layer_report()[0].layer_scale)
    for factor in (1.0, 6.0):
        for param in model.parameters():
            param.grad = torch.full_like(param, factor)
        optimizer.step()
    first, last, bias, _ = optimizer.layer_report()
    assert (first.name, last.name, bias.name) == ("0.weight", "1.weight", "0.bias")
    assert first.gradient_norm == pytest.approx(6 * math.sqrt(12))
    assert first.growth == pytest.approx(36)
    assert first.output_change == pytest.approx(0.3 * 6 / math.sqrt(2))
    assert bias.output_change is None
    v = 12 * (0.9 + 0.1 * 36)
    scale = math.sqrt(4 * first.row_norm_sq / (3 * 2 * v))  # ‖W‖ / √(f B v)
    assert first.layer_scale == pytest.approx(scale, rel=1e-6)
    assert "gradient norm over 4 times those before" in first.marks
    text = repr(optimizer.layer_report())
    assert "gradient_norm" in text and "backward_factor" not in text
    assert optimizer.layer_report().scalars()["growth/0.weight"] == first.growth


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"scale": "absolute"}, message("scale: got 'absolute'", "want one of 'amended', 'relative'")),
        ({"scale": "relative", "factors": "product"}, message("factors: got 'product' with scale='relative'")),
        ({"scale": "relative", "norms": "freeze"}, message("norms: got 'freeze' with scale='relative'")),
        ({"scale": "relative", "output_width": "mean"}, message("output_width: got 'mean' with scale='relative'")),
        ({"scale": "relative", "depth": 0}, message("depth: got 0, want a positive integer")),
        ({"depth": 3}, message("depth: got 3 with scale='amended'")),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        ScaleAmendedSGD([torch.zeros(2, 2)], **options)
