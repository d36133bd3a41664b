"""Steps hold on to nothing, and see gradients that are put in the place of others."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import backends, other_gradient_dtypes

pytestmark = pytest.mark.usefixtures("default_device")


@pytest.mark.parametrize("backend", backends())
def test_gradients_set_to_none_are_freed(backend: str) -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.1, momentum=0.9, backend=backend)
    for _ in range(3):
        weight.grad = torch.ones(2, 2)
        kept = weakref.ref(weight.grad)
        optimizer.step()
        optimizer.zero_grad()
        assert kept() is None


@pytest.mark.parametrize("backend", backends())
def test_gradients_of_a_skipped_or_failed_step_are_freed(backend: str) -> None:
    weight, other = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))
    optimizer = ScaleAmendedSGD([weight, other], lr=0.1, backend=backend)
    weight.grad = torch.ones(2, 2)
    kept = weakref.ref(weight.grad)
    vars(optimizer)["found_inf"] = torch.ones(1)  # as GradScaler does
    optimizer.step()
    del vars(optimizer)["found_inf"]
    other.grad = torch.ones(2).to_sparse()
    with pytest.raises(ValueError, match="want a dense tensor"):
        optimizer.step()
    optimizer.zero_grad()
    assert kept() is None


@pytest.mark.parametrize("backend", backends())
def test_a_gradient_transposed_in_place_is_read_in_its_new_layout(backend: str) -> None:
    """The same tensor object at the same address, with other strides."""
    weight = Parameter(torch.zeros(2, 2))
    optimizer = ScaleAmendedSGD([{"params": [weight], "amend": False}], lr=1.0, backend=backend)
    weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    optimizer.step()
    weight.grad.t_()
    optimizer.step()
    assert weight.tolist() == [[-2.0, -5.0], [-5.0, -8.0]]


@pytest.mark.parametrize("backend", backends())
def test_a_parameter_transposed_in_place_is_updated_in_its_new_layout(backend: str) -> None:
    weight = Parameter(torch.zeros(2, 2))
    optimizer = ScaleAmendedSGD([{"params": [weight], "amend": False}], lr=1.0, momentum=1.0, backend=backend)
    weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    optimizer.step()
    weight.data = weight.data.t()
    optimizer.state[weight]["momentum_buffer"].zero_()
    optimizer.step()
    assert weight.tolist() == [[-2.0, -5.0], [-5.0, -8.0]]


@other_gradient_dtypes
@pytest.mark.parametrize("backend", backends())
def test_gradients_may_change_their_dtype_where_the_parameter_allows_it(backend: str) -> None:
    weight = Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    weight.grad_dtype = None  # any
    optimizer = ScaleAmendedSGD([{"params": [weight], "amend": False}], lr=1.0, backend=backend)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32):
        weight.grad = torch.ones(2, 2, dtype=dtype)
        optimizer.step()
    assert weight.eq(-5).all()
