"""Parameters that a step has nothing to do with: they may be of any kind, or away. torch.optim.SGD skips them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.testing._internal.two_tensor import TwoTensor

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, backends, cpu_only

pytestmark = pytest.mark.usefixtures("default_device")


def wrapped(*shape: int) -> TwoTensor:
    return TwoTensor(torch.ones(shape), torch.ones(shape))


FROZEN: dict[str, Any] = {
    **{str(dtype): torch.ones(4, 2).to(dtype) for dtype in (torch.uint8, torch.int8, torch.bool, torch.complex64)},
    "float8": torch.ones(4, 2).to(torch.float8_e4m3fn),
    "sparse": torch.ones(4, 2).to_sparse(),
    "expanded": torch.ones(4, 1).expand(4, 2),
    "wrapped": wrapped(4, 2),
}


@cpu_only("the frozen tensors lie there")
@pytest.mark.parametrize("backend", [*backends(), None])
@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_parameters_of_any_kind(kind: str, backend: Any) -> None:
    """As quantized weights below adapters that are trained."""
    frozen = Parameter(FROZEN[kind], requires_grad=False)
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([frozen, weight], lr=0.1, momentum=0.9, backend=backend)
    for _ in range(2):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
    assert weight.max().item() < 1
    assert [row.name for row in optimizer.layer_report()] == ["parameter 1 of group 0"]
    optimizer.add_param_group({"params": [Parameter(FROZEN[kind], requires_grad=False)]})
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_frozen_packed_weight_keeps_its_place_in_the_factors() -> None:
    """Such as a linear layer of 4 bits."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2))
    expected = ScaleAmendedSGD(parameter_groups(model), factors="product").layer_report()
    model[1].weight = Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)
    rows = [8, 6, 2], [4, 8, 6]
    weights = [layer.weight for layer in model]
    optimizer = ScaleAmendedSGD([{"params": weights, "rows": rows[0], "columns": rows[1]}], factors="product")
    assert [row.backward_factor for row in optimizer.layer_report()] == [
        expected[0].backward_factor,
        expected[2].backward_factor,
    ]


def test_a_frozen_parameter_that_is_trained_after_all_is_checked() -> None:
    frozen, weight = Parameter(torch.ones(2, 2) * 1j, requires_grad=False), Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([frozen, weight], lr=0.1)
    frozen.requires_grad_()
    weight.grad, frozen.grad = torch.ones(2, 2), torch.ones(2, 2) * 1j
    with pytest.raises(ValueError, match=r"params: parameter 0 of group 0 is .*complex64, want one of"):
        optimizer.step()
    assert weight.eq(1).all()


@cpu_only("the wrapped tensors lie there")
@pytest.mark.parametrize("amend", [True, False])
@pytest.mark.parametrize("backend", ["foreach", "reference", None])
def test_trained_parameters_that_are_wrapped(backend: Any, amend: bool) -> None:
    plain = Parameter(torch.ones(3, 2))
    ours: Any = Parameter(wrapped(3, 2))
    beside, other = Parameter(torch.ones(2, 3)), Parameter(torch.ones(2, 3))
    optimizers = [
        ScaleAmendedSGD([{"params": params, "amend": amend}], lr=0.1, momentum=0.9, backend=name)
        for params, name in (([ours, beside], backend), ([plain, other], "reference"))
    ]
    for _ in range(2):
        for param in (ours, plain, beside, other):
            param.grad = torch.full_like(param, 0.5)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours.a, plain.detach())
    torch.testing.assert_close(beside, other)
    assert len(optimizers[0].layer_report()) == 2


@cpu_only("the wrapped tensor lies there")
@pytest.mark.parametrize("backend", backends(("native", "triton")))
def test_a_kernel_asked_for_by_name_says_what_it_cannot_reach(backend: str) -> None:
    with pytest.raises(RuntimeError, match="needs the memory of the parameters, which a TwoTensor does not show"):
        ScaleAmendedSGD([Parameter(wrapped(2, 2))], backend=backend)


@pytest.mark.parametrize("backend", backends())
def test_memory_that_is_away_between_uses(backend: str) -> None:
    """A storage of size 0; it comes back with other values, and the norm with it."""
    away, weight = Parameter(torch.ones(6, 4)), Parameter(torch.ones(4, 6))
    optimizer = ScaleAmendedSGD([away, weight], lr=0.1, momentum=0.9, backend=backend)
    away.grad, weight.grad = torch.ones(6, 4), torch.ones(4, 6)
    optimizer.step()
    away.grad = None
    size = away.untyped_storage().size()
    away.untyped_storage().resize_(0)
    weight.grad = torch.ones(4, 6)
    optimizer.step()
    assert len(optimizer.layer_report()) == 2
    away.untyped_storage().resize_(size)
    away.data.fill_(2.0)
    assert optimizer.layer_report()[0].row_norm_sq == pytest.approx(16.0)
    away.grad = torch.ones(6, 4)
    optimizer.step()
    assert away.isfinite().all()


@pytest.mark.parametrize("factors", ["width", "product"])
@pytest.mark.parametrize("backend", backends())
def test_parameters_that_are_empty_between_uses(backend: str, factors: Any) -> None:
    """``param.data = torch.empty(0)`` while momentum and masters stay."""

    def run(offloads: bool) -> list[Parameter]:
        params = [Parameter(torch.ones(rows, columns)) for rows, columns in ((6, 4), (3, 6), (2, 3))]
        optimizer = ScaleAmendedSGD(params, lr=0.1, momentum=0.9, factors=factors, backend=backend)
        for step in range(4):
            for param in params:
                param.grad = torch.ones_like(param)
            kept = params[1].data
            if step in (1, 2):
                params[1].grad = None
                if offloads:
                    params[1].data = torch.empty(0)
            optimizer.step()
            params[1].data = kept
        return params

    torch.testing.assert_close(run(True), run(False), rtol=0, atol=0)


@pytest.mark.parametrize("backend", backends())
def test_masters_of_memory_that_is_away(backend: str) -> None:
    params = [Parameter(torch.ones(4, 4, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = ScaleAmendedSGD(params, lr=0.1, master_weights=True, backend=backend)
    for step in range(3):
        params[0].grad = torch.ones_like(params[0])
        params[1].grad = torch.ones_like(params[1]) if step == 0 else None
        if step:
            params[1].data = torch.empty(0, dtype=torch.bfloat16)
        optimizer.step()
    assert optimizer.state[params[1]]["master_weight"].shape == (4, 4)


def begun(backend: str) -> tuple[list[Parameter], ScaleAmendedSGD]:
    params = [Parameter(torch.ones(4, 4)) for _ in range(2)]
    optimizer = ScaleAmendedSGD(params, lr=0.1, momentum=0.9, backend=backend)
    for param in params:
        param.grad = torch.ones(4, 4)
    optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("backend", backends())
def test_state_of_an_idle_parameter_may_be_anywhere(backend: str) -> None:
    params, optimizer = begun(backend)
    params[0].grad = None
    optimizer.state[params[0]]["momentum_buffer"] = torch.ones(4, 4, device="meta")
    optimizer.step()
    assert params[1].device == DEVICE


@pytest.mark.parametrize("backend", backends())
def test_a_checkpoint_while_memory_is_away(backend: str) -> None:
    params, optimizer = begun(backend)
    params[0].grad, kept = None, params[0].data
    params[0].data = torch.empty(0)
    optimizer.load_state_dict(optimizer.state_dict())
    params[0].data = kept
    for param in params:
        param.grad = torch.ones(4, 4)
    optimizer.step()
    torch.testing.assert_close(params[0], params[1], rtol=0, atol=0)


def test_a_frozen_float64_leaves_the_others_to_the_kernel() -> None:
    frozen = Parameter(torch.ones(2, 2, dtype=torch.float64), requires_grad=False)
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([frozen, weight], lr=0.1)
    alone = ScaleAmendedSGD([weight], lr=0.1)
    assert {backend.name for backend in optimizer._stepper.backends or []} >= {
        b.name for b in alone._stepper.backends or []
    }


def test_a_parameter_that_is_packed_between_uses() -> None:
    """It is trained, and float8 while there is no gradient."""
    packed, weight = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([packed, weight], lr=0.1, momentum=0.9)
    for step in range(3):
        packed.data = packed.data.to(torch.float8_e4m3fn if step == 1 else torch.float32)
        packed.grad = None if step == 1 else torch.ones(2, 2)
        weight.grad = torch.ones(2, 2)
        optimizer.step()
    assert packed.isfinite().all()
