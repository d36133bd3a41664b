"""What torch allows and few expect: each was wrong once, in silence or with a crash."""

from __future__ import annotations

import weakref
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from sasgd_fused.backends.fused import FusedBackend
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


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("norms", ["track", "freeze"])
def test_anything_else_in_the_state_is_left_alone(backend: str, norms: str) -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.1, momentum=0.9, backend=backend, norms=norms)
    notes: dict[Any, Any] = optimizer.state
    notes["note"] = 3
    for _ in range(2):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
    assert notes["note"] == 3
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[weight]["momentum_buffer"].shape == (2, 2)


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
@pytest.mark.parametrize("norms", ["track", "freeze"])
def test_exchanged_entries_of_the_state(norms: Literal["track", "freeze"], backend: str) -> None:
    """The same buffers and norms, in the same order of the dictionary, belong to others now."""

    def train(name: str) -> list[Parameter]:
        params = [Parameter(torch.full((3, 3), k + 1.0)) for k in range(3)]
        optimizer = ScaleAmendedSGD(params, lr=0.01, momentum=0.9, norms=norms, backend=name)
        for step in range(3):
            for k, param in enumerate(params):
                param.grad = torch.full_like(param, 0.1 * (k + 1))
            if step == 1:
                entries = [optimizer.state.pop(param) for param in params]
                for param, entry in zip((params[2], params[0], params[1]), entries, strict=True):
                    optimizer.state[param] = entry
            optimizer.step()
        return params

    for actual, expected in zip(train(backend), train("reference"), strict=True):
        assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_state_that_is_emptied_after_the_first_step(momentum: float, backend: str) -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.25, momentum=momentum, norms="freeze", backend=backend)
    for _ in range(2):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
        optimizer.state_dict()
        optimizer.state.clear()
    # 1 - 2 / 4, then with the norm of that, 1 / 2
    assert weight.flatten().tolist() == pytest.approx([0.5 - 0.125] * 4)


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_another_momentum_buffer_of_one_element(backend: str) -> None:
    """It equals the one before, so nothing but its identity tells them apart."""
    weight = Parameter(torch.ones(1))
    optimizer = ScaleAmendedSGD([weight], lr=0.1, momentum=0.9, backend=backend)
    weight.grad = torch.ones(1)
    optimizer.step()
    before = optimizer.state[weight]["momentum_buffer"]
    other = optimizer.state[weight]["momentum_buffer"] = before.clone()
    optimizer.step()
    assert before.item() == 1.0
    assert other.item() == pytest.approx(1.9)


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
def test_a_momentum_buffer_that_does_not_fit_is_found_when_it_is_needed(backend: str) -> None:
    """It was put in while its parameter had no gradient."""
    weight, other = Parameter(torch.ones(2, 3)), Parameter(torch.ones(2))
    optimizer = ScaleAmendedSGD([weight, other], lr=0.1, momentum=0.9, backend=backend)
    for param in (weight, other):
        param.grad = torch.ones_like(param)
    optimizer.step()
    before = weight.detach().clone()
    optimizer.state[weight]["momentum_buffer"] = torch.ones(1)
    weight.grad = None
    optimizer.step()
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match=r"^momentum_buffer of parameter 0 of group 0: got shape \(1,\), want"):
        optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_what_others_keep_in_the_state_costs_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step after which they stored another number or tensor is like the one before."""
    weights = [Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))]
    optimizer = ScaleAmendedSGD(weights, lr=0.1, momentum=0.9, backend=backend)
    for step in range(3):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        for weight in weights:
            optimizer.state[weight].update(step=step, old=weight.detach().clone(), count=torch.tensor(1.0))
        if step == 1:
            monkeypatch.setattr(FusedBackend, "_follow", None)
    assert optimizer.state[weights[0]]["step"] == 2


class _Comparisons(TorchDispatchMode):
    """Counts comparisons of tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.eq
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_exchanged_buffers_are_not_compared(backend: str) -> None:
    """On a GPU that waits for it, and a graph cannot be captured."""
    weights = [Parameter(torch.ones(1)), Parameter(torch.ones(2))]
    optimizer = ScaleAmendedSGD(weights, lr=0.1, momentum=0.9, backend=backend)
    for step in range(3):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
            if step:
                optimizer.state[weight] = {"momentum_buffer": optimizer.state[weight]["momentum_buffer"].clone()}
        with _Comparisons() as comparisons:
            optimizer.step()
        assert not comparisons.count
    assert optimizer.state[weights[0]]["momentum_buffer"].item() == pytest.approx(1 + 0.9 + 0.81)


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
@pytest.mark.parametrize("norms", ["track", "freeze"])
def test_what_is_taken_out_of_the_state_is_freed(norms: Literal["track", "freeze"], backend: str) -> None:
    """At once if it is not the optimizer's, else by the next step, though that does not update its parameter."""
    idle, weight = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([idle, weight], lr=0.1, momentum=0.9, norms=norms, backend=backend)
    for param in (idle, weight):
        optimizer.state[param]["old"] = torch.ones(2)
        param.grad = torch.ones(2, 2)
    optimizer.step()
    optimizer.step()
    optimizer.state_dict()  # what the device knows of norms is known
    old = weakref.ref(optimizer.state[idle].pop("old"))
    assert old() is None
    buffer = weakref.ref(optimizer.state.pop(idle)["momentum_buffer"])
    idle.grad = None
    optimizer.step()
    assert buffer() is None


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
