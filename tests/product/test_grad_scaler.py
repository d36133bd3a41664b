"""Under torch.amp.GradScaler the step unscales by itself, and an overflow leaves no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, LOW_PRECISION, Case, assert_close, backends, skips_on_device, states_of
from tests.tiers import thin
from tests.unchanged import bits, nothing_changes

SHAPES = [(6, 3, 3, 3), (6,), (0, 4), (), (5, 6)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "maximize": True},
    {"momentum": 0.9, "dampening": 0.5, "norms": "freeze", "head": "plain", "decay": "shape"},
    {"momentum": 0.9, "weight_decay": 0.01, "scale": "relative"},
]
SCALE = 16.0  # a power of two, as after every overflow: scaling changes no digit


def new_scaler(scale: float = SCALE) -> GradScaler:
    scaler = GradScaler(DEVICE.type, init_scale=scale)
    scaler.scale(torch.ones(1, device=DEVICE))  # makes the scale
    return scaler


def require_scaler_for(dtype: torch.dtype) -> None:
    """Skips a dtype whose gradients torch's scaler cannot look through on this device."""
    one = torch.ones(1, device=DEVICE)
    try:
        torch._amp_foreach_non_finite_check_and_unscale_([one.to(dtype)], torch.zeros_like(one), one)
    except NotImplementedError as error:  # bfloat16 on CUDA, pytorch#127176
        pytest.skip(f"GradScaler of this torch: {error}")


def set_scaled_grads(case: Case, params: list[Parameter], step: int, scaler: GradScaler, overflow: bool) -> None:
    """What `scaler.scale(loss).backward()` gives."""
    case.set_grads(params, step)
    for param in params:
        assert param.grad is not None
        param.grad.mul_(scaler.get_scale())
    if overflow:
        assert params[-1].grad is not None
        params[-1].grad[0, 0] = float("inf")


def scaler_step(scaler: GradScaler, optimizer: ScaleAmendedSGD) -> None:
    scaler.step(optimizer)
    scaler.update()


def results(optimizer: ScaleAmendedSGD, params: list[Parameter]) -> list[Any]:
    states = states_of(optimizer, params)
    return [
        [bits(param) for param in params],
        [{k: bits(v) if isinstance(v, Tensor) else v for k, v in state.items()} for state in states],
    ]


@thin(slow=1)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("overflows", [(), (0,), (0, 1, 3)], ids=str)
def test_a_run_is_the_run_without_scaler_and_overflows(
    overflows: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype, backend: str, two_threads: None
) -> None:
    """To the bit, also for the first update after an overflow in the very first step."""
    require_scaler_for(dtype)
    case = Case(SHAPES, dtype, options={"lr": 0.01, **options})
    params, scaler = case.params(), new_scaler()
    optimizer = case.optimizer(params, backend)
    good_steps = 0
    for attempt in range(6):
        if attempt in overflows:
            set_scaled_grads(case, params, 100 + attempt, scaler, overflow=True)
            with nothing_changes(optimizer, skips_on_device(backend)):
                scaler_step(scaler, optimizer)
            assert attempt > 0 or skips_on_device(backend) or not optimizer.state_dict()["state"]
        else:
            set_scaled_grads(case, params, good_steps, scaler, overflow=False)
            scaler_step(scaler, optimizer)
            good_steps += 1
    expected, plain = case.run(backend, good_steps)
    assert results(optimizer, params) == results(plain, expected)
    assert scaler.get_scale() == SCALE / 2 ** len(overflows)


@pytest.mark.parametrize("backend", backends())
def test_the_gradient_stays_scaled_and_the_optimizer_as_it_was(backend: str) -> None:
    """The fused optimizers of torch write the unscaled gradient back."""
    case = Case(SHAPES)
    params, scaler = case.params(), new_scaler()
    optimizer = case.optimizer(params, backend)
    set_scaled_grads(case, params, 0, scaler, overflow=False)
    before = [(param.grad, bits(param.grad), param.grad._version) for param in params if param.grad is not None]
    scaler_step(scaler, optimizer)
    after = [(param.grad, bits(param.grad), param.grad._version) for param in params if param.grad is not None]
    assert all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(after, before, strict=True))
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("scale", [1000.0, 3e-4])
def test_any_scale(scale: float, backend: str) -> None:
    case = Case(SHAPES, options={"lr": 0.01, "momentum": 0.9})
    params, scaler = case.params(), new_scaler(scale)
    optimizer = case.optimizer(params, backend)
    for step in range(3):
        set_scaled_grads(case, params, step, scaler, overflow=False)
        scaler_step(scaler, optimizer)
    for actual, expected in zip(params, case.run("reference")[0], strict=True):
        assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("overflow", [False, True])
def test_unscaled_before_the_step(overflow: bool, backend: str) -> None:
    """`scaler.unscale_`, then clipping, then the step, which must not unscale again."""
    case = Case(SHAPES, options={"lr": 0.01, "momentum": 0.9})
    params, scaler = case.params(), new_scaler()
    optimizer = case.optimizer(params, backend)
    set_scaled_grads(case, params, 0, scaler, overflow)
    scaler.unscale_(optimizer)
    if overflow:
        with nothing_changes(optimizer, skips_on_device(backend)):
            scaler.step(optimizer)
        return
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    scaler.step(optimizer)
    expected = case.params()
    plain = case.optimizer(expected, backend)
    case.set_grads(expected, 0)
    torch.nn.utils.clip_grad_norm_(expected, 1.0)
    plain.step()
    assert results(optimizer, params) == results(plain, expected)


@pytest.mark.parametrize("backend", backends())
def test_the_scale_backs_off_and_grows(backend: str) -> None:
    """A whole training loop with gradients from autograd, in float16, as torch.amp.GradScaler drives it."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3, bias=False, dtype=torch.float16).to(DEVICE)
    optimizer = ScaleAmendedSGD(layer.parameters(), lr=0.1, backend=backend)
    scaler = GradScaler(DEVICE.type, init_scale=2.0**16, growth_interval=2)
    scales, moved = [], []
    for _ in range(6):
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(layer(torch.ones(1, 4, dtype=torch.float16, device=DEVICE)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        moved.append(not torch.equal(layer.weight, before))
    assert scales == [2.0**15, 2.0**15, 2.0**16, 2.0**15, 2.0**15, 2.0**16]
    assert moved == [False, True, True, False, True, True]


@pytest.mark.parametrize("backend", backends())
def test_a_disabled_scaler(backend: str) -> None:
    case = Case(SHAPES)
    params, scaler = case.params(), GradScaler(DEVICE.type, enabled=False)
    optimizer = case.optimizer(params, backend)
    for step in range(3):
        case.set_grads(params, step)
        scaler_step(scaler, optimizer)
    expected, plain = case.run(backend)
    assert results(optimizer, params) == results(plain, expected)


@pytest.mark.parametrize(
    ("options", "dtype", "inside"),
    [
        ({}, torch.float32, False),
        ({"foreach": True}, torch.float32, False),
        ({"fused": False}, torch.float32, False),
        ({"backend": "reference"}, torch.float32, True),
        ({"fused": True}, torch.float32, True),
        ({}, torch.float16, True),  # which GradScaler refuses to unscale
    ],
)
def test_who_unscales(options: dict[str, Any], dtype: torch.dtype, inside: bool) -> None:
    """As with torch.optim.SGD: GradScaler itself, so that a trainer may clip, unless a fused step was asked for."""
    optimizer = ScaleAmendedSGD([Parameter(torch.ones(2, 2, dtype=dtype, device=DEVICE))], lr=0.1, **options)
    assert getattr(optimizer, "_step_supports_amp_scaling", False) is inside
    assert getattr(copy.deepcopy(optimizer), "_step_supports_amp_scaling", False) is inside
