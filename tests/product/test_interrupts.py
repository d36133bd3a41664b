"""An interrupt in the middle of a step: a resumed run needs what would be noted, and the run itself goes on."""

from __future__ import annotations

import copy
import itertools
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import sasgd_fused
from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends.watch import GradientWatch
from tests.helpers import FAST_BACKENDS, Case, backends, states_of

pytestmark = pytest.mark.usefixtures("default_device")

VARIANTS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9, "dampening": 0.5},
    "frozen norms": {"norms": "freeze"},
    "stochastic": {"momentum": 0.9, "rounding": "stochastic"},
    "relative": {"momentum": 0.9, "scale": "relative"},
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


@contextmanager
def interrupt_at_line(number: int) -> Iterator[list[str]]:
    """Interrupts before a line of the package, counted as they run; the list names that line then."""
    package, lines, interrupted_at = str(Path(sasgd_fused.__file__).parent), itertools.count(1), list[str]()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line" and next(lines) == number:
            interrupted_at.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield interrupted_at
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("backend", backends(("native",)))
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_run_goes_on_as_its_copy_does(steps: int, every: int, variant: str, backend: str) -> None:
    """After an interrupt at any line, in the first step or after others have written a weight."""
    case = case_of(variant)
    for number in itertools.count(1, every):
        params, optimizer = case.run(backend, steps)
        with torch.no_grad():
            params[0].mul_(1.5)
        case.set_grads(params, 5)
        with interrupt_at_line(number) as interrupted_at:
            optimizer.step()
        if not interrupted_at:
            break
        others = [Parameter(param.detach().clone()) for param in params]
        other = case.optimizer(others, backend)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for step in (6, 7):
            for run, its_params in ((optimizer, params), (other, others)):
                case.set_grads(its_params, step)
                if step == 6:
                    its_params[1].grad = None
                run.step()
        assert all(map(torch.equal, params, others)), interrupted_at
        assert not any(row.stale_steps for row in optimizer.layer_report()), interrupted_at


@pytest.mark.parametrize("backend", backends(("native",)))
def test_gradients_of_others_after_an_interrupt(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the gradients are noted; then as many have one as in the step before, but not the same."""
    weights = [Parameter(torch.zeros(2, 2)) for _ in range(3)]
    optimizer = ScaleAmendedSGD(weights, lr=1.0, eps=1.0, backend=backend)
    weights[0].grad, weights[1].grad = torch.ones(2, 2), torch.ones(2, 2)
    optimizer.step()
    before = [weight.detach().clone() for weight in weights]
    weights[0].grad, weights[2].grad = None, torch.ones(2, 2)
    note = GradientWatch.note

    def interrupted(*args: Any) -> None:
        note(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(GradientWatch, "note", interrupted)
        optimizer.step()
    optimizer.step()
    assert [torch.equal(weight, old) for weight, old in zip(weights, before, strict=True)] == [True, False, False]


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
