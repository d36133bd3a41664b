"""An interrupt that comes when the kernel has run and nothing is noted yet: a resumed run needs what would be."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import FAST_BACKENDS, Case, backends, states_of

pytestmark = pytest.mark.usefixtures("default_device")

VARIANTS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9, "dampening": 0.5},
    "frozen norms": {"norms": "freeze"},
    "relative": {"scale": "relative", "momentum": 0.9},
    "stochastic": {"momentum": 0.9, "rounding": "stochastic"},
    "masters": {"master_weights": True, "momentum": 0.9},
}


def case_of(variant: str) -> Case:
    dtype = torch.float32 if variant in ("momentum", "frozen norms", "relative") else torch.bfloat16
    return Case([(4, 3), (4,), (2, 4)], dtype, options={"lr": 0.1, **VARIANTS[variant]})


class _Interrupted:
    """Stands for a kernel's plan; its step is followed by an interrupt, as Python delivers it."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def step(self, *args: Any) -> None:
        self._kernel.step(*args)
        raise KeyboardInterrupt


@contextmanager
def interrupted(optimizer: ScaleAmendedSGD) -> Iterator[None]:
    optimizer.layer_report()
    (backend,) = optimizer._stepper.backends or []
    kernel = vars(backend)["kernel"]
    vars(backend)["kernel"] = _Interrupted(kernel)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        vars(backend)["kernel"] = kernel


def train(variant: str, backend: str, interrupt: int | None) -> tuple[list[Parameter], list[dict[str, Any]]]:
    case = case_of(variant)
    params = case.params()
    optimizer = case.optimizer(params, backend)
    for step in range(3):
        case.set_grads(params, step)
        if step == interrupt:
            with interrupted(optimizer):
                optimizer.step()
        else:
            optimizer.step()
    return params, states_of(optimizer, params)


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("interrupt", [0, 1])
def test_nothing_is_lost(interrupt: int, variant: str, backend: str) -> None:
    """Momentum, frozen norms, counts of rounding, and what the next step thinks of its weights."""
    params, states = train(variant, backend, interrupt)
    expected, wanted = train(variant, backend, None)
    assert all(map(torch.equal, params, expected))
    assert _plain(states) == _plain(wanted)


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_autograd_sees_the_write(backend: str) -> None:
    case = case_of("momentum")
    params = case.params()
    optimizer = case.optimizer(params, backend)
    case.set_grads(params, 0)
    versions = [param._version for param in params]
    with interrupted(optimizer):
        optimizer.step()
    assert all(param._version > version for param, version in zip(params, versions, strict=True))


@pytest.mark.parametrize("backend", backends(("native",)))
def test_a_signal_while_the_kernel_runs(backend: str) -> None:
    """Python calls its handler at the first chance after the kernel."""

    def raise_timeout(*_: object) -> None:
        raise TimeoutError

    weight = Parameter(torch.ones(1000, 1000))
    optimizer = ScaleAmendedSGD([weight], lr=0.1, norms="freeze", backend=backend)
    weight.grad = torch.ones(1000, 1000)
    before = signal.signal(signal.SIGALRM, raise_timeout)
    try:
        with pytest.raises(TimeoutError):
            signal.setitimer(signal.ITIMER_REAL, 2e-3)
            while True:
                optimizer.step()
    finally:
        signal.signal(signal.SIGALRM, before)
    if not weight.eq(1).all():
        assert optimizer.state[weight]["row_norm_sq"] == pytest.approx(1000.0)


@pytest.mark.parametrize("backend", ["foreach", "reference"])
def test_random_numbers_are_not_drawn_twice(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("stochastic")
    params = case.params()
    optimizer = case.optimizer(params, backend)
    case.set_grads(params, 0)
    optimizer.step()

    def interrupt(*_: object) -> Tensor:
        raise KeyboardInterrupt

    before = copy.deepcopy(states_of(optimizer, params))
    monkeypatch.setattr(f"sasgd_fused.backends.{backend}.store", interrupt)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    for state, old in zip(states_of(optimizer, params), before, strict=True):
        assert state["rounding_step"] == old["rounding_step"] + 1


def _plain(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value.tolist() if isinstance(value, Tensor) else value for key, value in s.items()} for s in states]
