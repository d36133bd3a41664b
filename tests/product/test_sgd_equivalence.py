"""With every scale at 1 the step is torch.optim.SGD's, over all of its options."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, Case, assert_close, backends
from tests.tiers import thin

STEPS = 6
LR = 0.1
LAYERS = [(6, 5), (4, 3, 3, 3), (1, 7), (9,), (), (0, 3), (3, 4)]
VECTORS = [(30,), (1,), (0,), (), (129,)]

# Every combination that torch.optim.SGD takes.
HYPERPARAMETERS = [
    {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "maximize": maximize, "weight_decay": decay}
    for momentum, dampening, nesterov, maximize, decay in itertools.product(
        (0, 0.9), (0, 0.3), (False, True), (False, True), (0, 0.1)
    )
    if not nesterov or (momentum and not dampening)
]


def name_of(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items() if value) or "plain"


def unamended(params: list[Parameter], backend: str, **options: Any) -> ScaleAmendedSGD:
    return ScaleAmendedSGD([{"params": params, "amend": False}], LR, backend=backend, **options)


def by_shape(params: list[Parameter], backend: str, **options: Any) -> ScaleAmendedSGD:
    return ScaleAmendedSGD(params, LR, backend=backend, **options)


def by_factors(params: list[Parameter], backend: str, **options: Any) -> ScaleAmendedSGD:
    """m_b = ‖W_b‖² of the first weights, so that s_b = ‖W_b‖² / m_b = 1 as long as the norms are frozen."""
    factors = {p: float(p.detach().double().square().sum()) / p.shape[0] for p in params if p.dim() > 1 and p.numel()}
    return ScaleAmendedSGD(params, LR, backend=backend, factors=factors, norms="freeze", **options)


WAYS = {
    "unamended": (unamended, LAYERS),
    "vectors": (by_shape, VECTORS),
    "factors": (by_factors, LAYERS),
}


def run_both(way: str, dtype: torch.dtype, backend: str, **options: Any) -> list[tuple[Tensor, Tensor]]:
    """All weights, and all momentum where there is any, of ours and of torch's optimizer after some steps."""
    make, shapes = WAYS[way]
    case = Case(shapes, dtype)
    ours, theirs = case.params(), case.params()
    optimizer = make(ours, backend, **options)
    expected = torch.optim.SGD(theirs, LR, foreach=False, fused=False, **options)
    for step in range(STEPS):
        for params, stepping in ((ours, optimizer), (theirs, expected)):
            case.set_grads(params, step)
            stepping.step()
    pairs = [(joined(ours), joined(theirs))]
    if options["momentum"]:
        pairs.append((joined_momentum(optimizer, ours), joined_momentum(expected, theirs)))
    return pairs


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """One vector, since in a tensor of one element that comes close to zero every rounding looks large."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def joined_momentum(optimizer: torch.optim.Optimizer, params: Iterable[Parameter]) -> Tensor:
    return joined(optimizer.state[param]["momentum_buffer"] for param in params)


@pytest.mark.parametrize("options", HYPERPARAMETERS, ids=name_of)
@pytest.mark.parametrize("way", WAYS)
def test_reference_in_float64(way: str, options: dict[str, Any]) -> None:
    """To rounding: 7e-16 was the most seen, relative to the element or to the root mean square of all."""
    for actual, expected in run_both(way, torch.float64, "reference", **options):
        rms = float(expected.square().mean().sqrt())
        torch.testing.assert_close(actual, expected, rtol=2e-15, atol=2e-15 * rms)


@thin(slow=1)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("options", HYPERPARAMETERS, ids=name_of)
@pytest.mark.parametrize("way", WAYS)
def test_every_backend_in_float32(way: str, options: dict[str, Any], backend: str) -> None:
    for actual, expected in run_both(way, torch.float32, backend, **options):
        assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("backend", backends())
def test_tracked_norms_leave_these_factors(backend: str) -> None:
    """The same factors do not give SGD once the norms follow the weights: the test above can fail."""
    case = Case([(6, 5)])
    params, frozen = case.params(), case.params()
    factors: dict[Any, float] = {p: float(p.detach().double().square().sum()) / p.shape[0] for p in (*params, *frozen)}
    tracking = ScaleAmendedSGD(params, LR, backend=backend, factors=factors)
    freezing = ScaleAmendedSGD(frozen, LR, backend=backend, factors=factors, norms="freeze")
    for step in range(2):
        case.set_grads(params, step)
        case.set_grads(frozen, step)
        tracking.step()
        freezing.step()
    assert (params[0] - frozen[0]).abs().max() > 1e-3


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("group", [{"momentum": 0.0}, {"dampening": 0.5}], ids=str)
def test_a_group_may_differ_under_nesterov(group: dict[str, Any], backend: str) -> None:
    """Torch checks momentum and dampening against nesterov for its arguments only."""
    case = Case([(7,), (5,)])
    ours, theirs = case.params(), case.params()
    optimizers = [
        make([{"params": params[:1]}, {"params": params[1:], **group}], lr=LR, momentum=0.9, nesterov=True, **how)
        for make, params, how in (
            (ScaleAmendedSGD, ours, {"backend": backend}),
            (torch.optim.SGD, theirs, {"foreach": False}),
        )
    ]
    for step in range(STEPS):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            case.set_grads(params, step)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, torch.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_without_decay_a_weight_has_no_part_in_its_gradient(momentum: float, backend: str) -> None:
    """An infinite one (a mask) stays what it is, also where another group decays; so does the sign of 0."""
    weights = [math.inf, -math.inf, 1.0, -2.0, 0.0, -0.0, 0.0, -0.0]
    grads = [1.0, -1.0, -0.0, 3.0, -0.0, -0.0, 0.0, 0.0]
    results = []
    for make in (partial(unamended_groups, backend=backend), partial(torch.optim.SGD, foreach=False)):
        params = [Parameter(torch.tensor([values, values], device=DEVICE)) for values in (weights, grads)]
        optimizer = make([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.5}], lr=0.5)
        for group in optimizer.param_groups:
            group["momentum"] = momentum
        for _ in range(2):
            for param in params:
                param.grad = torch.tensor([grads, grads], device=DEVICE)
            optimizer.step()
        results.append([param.detach() for param in params])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
        if not momentum:
            assert torch.equal(ours.signbit(), theirs.signbit())


def unamended_groups(groups: list[dict[str, Any]], **options: Any) -> ScaleAmendedSGD:
    return ScaleAmendedSGD([{**group, "amend": False} for group in groups], **options)
