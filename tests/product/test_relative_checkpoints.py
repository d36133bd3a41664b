"""Checkpoints of other scales in the relative one, and its own."""

from __future__ import annotations

import pytest
import torch

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import Case, backends, states_of, through_file

pytestmark = pytest.mark.usefixtures("default_device")
EVERY = pytest.mark.parametrize("backend", backends())


@EVERY
def test_from_and_to_torch_sgd(backend: str) -> None:
    """From SGD all but the momentum, which has the loss's unit; ours is a checkpoint of torch.optim.SGD too."""
    case = Case([(3, 4), (3,)])
    params, fresh, twins = case.params(), case.params(), case.params()
    sgd = torch.optim.SGD(twins, lr=0.1, momentum=0.9)
    case.set_grads(twins, 0)
    sgd.step()
    optimizer = ScaleAmendedSGD(params, lr=0.2, momentum=0.8, scale="relative", backend=backend)
    with pytest.warns(UserWarning, match="not of ScaleAmendedSGD.*another optimizer; momentum begins anew"):
        optimizer.load_state_dict(through_file(sgd.state_dict()))
    like_fresh = ScaleAmendedSGD(fresh, lr=0.1, momentum=0.9, scale="relative", backend=backend)
    for step in range(1, 3):
        for ours, stepped in ((params, optimizer), (fresh, like_fresh)):
            case.set_grads(ours, step)
            stepped.step()
    for param, other in zip(params, fresh, strict=True):
        assert torch.equal(param, other)
    sgd.load_state_dict(through_file(optimizer.state_dict()))
    case.set_grads(twins, 3)
    sgd.step()


def test_from_the_amended_scale_without_its_momentum() -> None:
    case = Case([(3, 4), (3,)], options={"momentum": 0.9})
    params = case.params()
    amended = case.optimizer(params, "reference")
    case.set_grads(params, 0)
    amended.step()
    relative = ScaleAmendedSGD(params, lr=0.3, scale="relative", backend="reference")
    with pytest.warns(UserWarning, match="scale='amended'; .* scale='relative', .* that scale; momentum begins anew"):
        relative.load_state_dict(through_file(amended.state_dict()))
    assert not any("momentum_buffer" in state for state in states_of(relative, params))


def test_its_own_goes_on_with_its_momentum_where_no_gradient_has_a_norm() -> None:
    """The only layer is a plain head."""
    case = Case([(3, 4)], options={"momentum": 0.9, "scale": "relative", "head": "plain"})
    params, resumed = case.params(), case.params()
    optimizer, other = case.optimizer(params, "reference"), case.optimizer(resumed, "reference")
    case.set_grads(params, 0)
    optimizer.step()
    other.load_state_dict(through_file(optimizer.state_dict()))
    (before,), (after,) = states_of(optimizer, params), states_of(other, resumed)
    assert torch.equal(before["momentum_buffer"], after["momentum_buffer"])
