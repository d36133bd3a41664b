"""What torch allows and few expect: each was wrong once, in silence or with a crash."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, FAST_BACKENDS, assert_close, backends

pytestmark = pytest.mark.usefixtures("default_device")


@pytest.mark.parametrize("backend", backends())
def test_a_gradient_whose_negation_is_put_off(backend: str) -> None:
    """Autograd gives one through a complex number; what lies in memory has the other sign."""
    weight = Parameter(torch.tensor([1.0]))
    optimizer = ScaleAmendedSGD([weight], lr=1.0, backend=backend)
    conjugate = torch.complex(torch.zeros(1), weight).conj()
    (conjugate * torch.tensor([2.0 + 3j])).real.sum().backward()
    assert weight.grad is not None and weight.grad.is_neg()
    optimizer.step()
    assert weight.item() == -2.0


@pytest.mark.parametrize("backend", backends())
def test_a_gradient_of_zeros_without_memory_still_decays_the_weight(backend: str) -> None:
    weight = Parameter(torch.tensor([1.0]))
    optimizer = ScaleAmendedSGD([weight], lr=0.5, weight_decay=1.0, backend=backend)
    weight.grad = torch._efficientzerotensor((1,), dtype=torch.float32, device=DEVICE)
    optimizer.step()
    assert weight.item() == 0.5


@pytest.mark.parametrize("backend", backends())
def test_a_parameter_cut_short_in_place(backend: str) -> None:
    """The same address, and its gradient's too; the rest of the memory is not its own any more."""
    weight = Parameter(torch.ones(4, 4))
    whole, memory = weight.data, torch.ones(16)
    optimizer = ScaleAmendedSGD([weight], lr=1.0, backend=backend, output_width=4)
    weight.grad = memory.view(4, 4)
    optimizer.step()  # s = 16 / 4
    weight.grad = None
    weight.data = weight.data[:2]
    weight.grad = memory[:8].view(2, 4)
    optimizer.step()  # s = 9 * 8 / 4
    assert whole[2:].eq(-3).all()
    assert whole[:2].eq(-3 - 18).all()


@pytest.mark.parametrize("backend", backends())
def test_rows_cut_off_where_the_address_and_the_strides_stay(backend: str) -> None:
    """The factors of the layer before are others then."""
    weights = [Parameter(torch.full((4, 4), k + 1.0)) for k in range(2)]
    optimizer = ScaleAmendedSGD(weights, lr=0.01, factors="product", backend=backend)
    for weight in weights:
        weight.grad = torch.ones(4, 4)
    optimizer.step()
    weights[1].grad = None
    weights[1].data = weights[1].data[:2]
    weights[1].grad = torch.ones(2, 4)
    expected = [Parameter(weight.detach().clone()) for weight in weights]
    fresh = ScaleAmendedSGD(expected, lr=0.01, factors="product", backend="reference")
    for weight, other in zip(weights, expected, strict=True):
        other.grad = weight.grad
    optimizer.step()
    fresh.step()
    for weight, other in zip(weights, expected, strict=True):
        assert_close(weight, other, torch.float32)


@pytest.mark.parametrize("backend", backends())
def test_the_head_stays_the_head_when_a_group_loses_a_parameter(backend: str) -> None:
    body, head = Parameter(torch.ones(3, 2)), Parameter(torch.ones(2, 3))
    optimizer = ScaleAmendedSGD([body, head], backend=backend, head="plain")
    optimizer.param_groups[0]["params"].pop(0)
    (row,) = optimizer.layer_report()
    assert (row.scaled, row.layer_scale) == (False, 1.0)


def test_a_checkpoint_of_two_models_is_not_dealt_out_wrongly() -> None:
    models = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]
    params = [param for model in models for param in model.parameters()]
    sgd = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    for param in params:
        param.grad = torch.ones_like(param)
    sgd.step()
    optimizer = ScaleAmendedSGD([group for model in models for group in parameter_groups(model)])
    with pytest.raises(ValueError, match=r"state_dict: got parameter groups of \[8\] parameters, want \[2, 2, 2, 2\]"):
        optimizer.load_state_dict(sgd.state_dict())
    assert not optimizer.state


@pytest.mark.parametrize("backend", backends())
def test_momentum_left_on_another_device(backend: str) -> None:
    """As after moving a model and not its optimizer; the first parameter must not move either."""
    params = [Parameter(torch.ones(2)), Parameter(torch.ones(2))]
    optimizer = ScaleAmendedSGD(params, lr=0.1, momentum=0.9, backend=backend)
    for param in params:
        param.grad = torch.ones(2)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    optimizer.state[params[1]]["momentum_buffer"] = torch.ones(2, device="meta")
    with pytest.raises(
        ValueError, match=rf"momentum_buffer of parameter 1 of group 0: got .* on meta, want .* {DEVICE}"
    ):
        optimizer.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_a_parameter_whose_storage_was_taken_away(backend: str) -> None:
    weight, other = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))
    optimizer = ScaleAmendedSGD([weight, other], lr=0.1, momentum=0.9, backend=backend)
    weight.grad, other.grad = torch.ones(2, 2), torch.ones(2)
    weight.untyped_storage().resize_(0)
    for _ in range(2):
        with pytest.raises(ValueError, match="parameter 0 of group 0 has no memory of its own"):
            optimizer.step()
    assert other.eq(1).all()
    assert not optimizer.state


def test_a_module_that_is_used_twice_stands_at_its_last_place() -> None:
    twice = nn.Linear(3, 3)
    groups = parameter_groups(nn.Sequential(twice, nn.Linear(3, 3), twice))
    assert [name for name, _ in groups[-1]["params"]] == ["1.weight", "0.weight"]


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
@pytest.mark.filterwarnings("ignore:the weights of")
def test_views_of_one_flat_tensor_need_no_norm_pass_either(backend: str) -> None:
    """They share a version counter, which a step raises once for each of them.

    A norm pass before the last step would see what was written unseen, and the step would not count as stale.
    """
    flat = torch.ones(8)
    params = [Parameter(flat[:4].view(2, 2)), Parameter(flat[4:].view(2, 2))]
    optimizer = ScaleAmendedSGD(params, lr=0.0, backend=backend)
    for step in range(3):
        if step == 2:
            params[0].data.mul_(2.0)
        for param in params:
            param.grad = torch.ones(2, 2)
        optimizer.step()
    assert [row.stale_steps for row in optimizer.layer_report()] == [1, 0]


@pytest.mark.parametrize("backend", backends())
def test_a_strided_view_without_gradient_is_not_written(backend: str) -> None:
    views = [Parameter(torch.ones(4, 2)[:, 0]) for _ in range(2)]
    optimizer = ScaleAmendedSGD(views, lr=0.1, backend=backend)
    views[0].grad = torch.ones(4)
    version = views[1]._version
    optimizer.step()
    assert views[1]._version == version


@pytest.mark.parametrize("backend", backends())
def test_rows_cut_off_in_place(backend: str) -> None:
    """As by structured pruning: addresses and strides stay, of the gradients too."""
    weight, gradient = Parameter(torch.ones(4, 2)), torch.ones(4, 2)
    optimizer = ScaleAmendedSGD([weight], lr=0.1, backend=backend)
    weight.grad = gradient
    optimizer.step()
    whole = weight.detach().clone()
    kept = weight.data
    weight.data = kept[:2]
    weight.grad.data = gradient[:2]
    optimizer.step()
    assert [row.rows for row in optimizer.layer_report()] == [2]
    assert torch.equal(kept[2:], whole[2:])
    assert (kept[:2] < whole[:2]).all()


@pytest.mark.parametrize("backend", backends())
def test_a_write_beside_an_exchange_of_parameters(backend: str) -> None:
    """The exchanged one's version counter is lower by as much as the other's is higher, and the sum is the same."""
    weights = [Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = ScaleAmendedSGD(weights, lr=0.1, backend=backend)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.ones(2, 2)
        optimizer.step()
    weights[0].grad = None
    other = Parameter(torch.ones(2, 2))
    writes = weights[0]._version - other._version
    torch.utils.swap_tensors(weights[0], other)
    for _ in range(writes):
        with torch.no_grad():
            weights[1].mul_(2.0)
    before = weights[1].detach().clone()
    weights[0].grad = torch.ones(2, 2)
    optimizer.step()
    last = optimizer.layer_report()[-1]
    assert not last.stale_steps
    scale = float(before.square().sum()) / 2 / last.backward_factor
    assert_close(weights[1], before - 0.1 * scale, torch.float32)


@pytest.mark.parametrize("backend", backends())
def test_other_elements_at_the_same_address(backend: str) -> None:
    flat = torch.ones(9)
    flat[4:] = 100.0
    weight = Parameter(flat[:4].view(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.1, output_width=2, backend=backend)
    for _ in range(2):
        weight.grad = torch.zeros(2, 2)
        optimizer.step()
    weight.grad = None
    weight.data = flat.as_strided((2, 2), (4, 1))  # 1 1 and 100 100
    weight.grad = torch.ones(2, 2)
    optimizer.step()  # s = 20002 / 2
    assert weight.detach().flatten().tolist() == pytest.approx([1 - 1000.1] * 2 + [100 - 1000.1] * 2, rel=1e-6)
