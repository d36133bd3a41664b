"""What the Triton backend promises beyond right numbers: the CUDA backend's bits, few launches, nothing sent twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sasgd_fused.backends.fused import FusedBackend
from tests.helpers import LOW_PRECISION, Case, assert_close, backends, cpu_only, states_of
from tests.kernels.emulated_cuda import EMULATED_CUDA
from tests.kernels.emulated_runs import OPTIONS, SHAPES, begun
from tests.tiers import thin

pytestmark = [cpu_only("Triton's interpreter runs there"), pytest.mark.parametrize("backend", backends(["triton"]))]

# The output width keeps the scales small, and so the momentum finite in float16.
TRACK = {"lr": 1e-3, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01, "output_width": 10_000}
RELATIVE = {"scale": "relative", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
RULES: dict[str, dict[str, Any]] = {
    "track": TRACK,
    "freeze": {**TRACK, "norms": "freeze", "head": "plain", "decay": "shape"},
    "product": {**TRACK, "factors": "product", "output_width": 10**9, "maximize": True},
    "nesterov": {**TRACK, "dampening": 0.0, "nesterov": True},
    "without momentum": {"lr": 1e-3, "output_width": 10_000},
    "relative": RELATIVE,
    "relative, shape": {**RELATIVE, "decay": "shape", "head": "plain", "nesterov": True},
    "relative, without momentum": {**RELATIVE, "momentum": 0.0, "maximize": True},
}
# Besides shapes with less than a lane's share and with several chunks: more than one level of the tree.
DEEP = [*SHAPES, (3, 8192 * 6)]


class Launches:
    """Counts what is put on the stream: kernels, and copies to tables."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        from triton.runtime.interpreter import InterpretedFunction

        self._count: Counter[str] = Counter()
        run, copy = InterpretedFunction.run, Tensor.copy_

        def counted_run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            self._count[kernel.fn.__name__] += 1
            return run(kernel, *args, **kwargs)

        def counted_copy(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self._count[f"{tensor.numel()} words"] += 1
            return copy(tensor, *args, **kwargs)

        patch.setattr(InterpretedFunction, "run", counted_run)
        patch.setattr(Tensor, "copy_", counted_copy)

    def new(self) -> dict[str, int]:
        counted, self._count = self._count, Counter()
        return dict(counted)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    return Launches(monkeypatch)


STEP = {"step_kernel": 1, "finish_step_kernel": 1}
NORM_PASS = {"norm_kernel": 1, "finish_norm_kernel": 1}
GRADIENT_PASS = {"gradient_kernel": 1, "finish_gradient_kernel": 1}


over_dtypes = pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
beside_cuda = pytest.mark.parametrize("twin", backends([EMULATED_CUDA]))


@thin
@beside_cuda
@over_dtypes
@pytest.mark.parametrize("layout", ["contiguous", "misaligned"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_it_has_the_bits_of_cuda(
    rule: dict[str, Any], layout: str, dtype: torch.dtype, twin: str, backend: str
) -> None:
    assert_same_bits(Case(SHAPES, dtype, layout, grad_layout="misaligned", options=rule), (backend, twin))


@thin(slow=1)
@beside_cuda
@over_dtypes
@pytest.mark.parametrize("rule", [TRACK, RELATIVE], ids=["track", "relative"])
def test_its_sums_over_many_chunks_have_the_bits_of_cuda(
    rule: dict[str, Any], dtype: torch.dtype, twin: str, backend: str
) -> None:
    assert_same_bits(Case(DEEP, dtype, options=rule), (backend, twin))


def assert_same_bits(case: Case, names: Sequence[str]) -> None:
    """Of weights, momentum and norms, carried and measured."""
    runs = []
    for name in names:
        params, optimizer = case.run(name, 2)
        optimizer.refresh_norms()
        case.set_grads(params, 2)
        optimizer.step()
        assert all(bool(param.isfinite().all()) for param in params)
        runs.append((params, states_of(optimizer, params), optimizer.layer_report()))
    (params, states, report), (their_params, their_states, their_report) = runs
    assert all(map(torch.equal, params, their_params))
    for state, theirs in zip(states, their_states, strict=True):
        assert state.keys() == theirs.keys()
        assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(theirs[key])) for key in state)
    assert report == their_report


def test_a_step_is_two_launches_whatever_the_number_of_tensors(launches: Launches, backend: str) -> None:
    for shapes in (SHAPES, [(3, 2)] * 40):
        case = Case(shapes, options=OPTIONS, groups=[(range(4), {}), (range(4, len(shapes)), {"lr": 1e-3})])
        _, optimizer = begun(case, backend=backend)
        launches.new()
        optimizer.step()
        counted = launches.new()
        counted.pop(f"{len(shapes)} words")  # other gradients
        assert counted == STEP


def test_a_norm_pass_is_two_more(launches: Launches, backend: str) -> None:
    params, optimizer = begun(Case(SHAPES, options=OPTIONS), backend=backend)
    launches.new()
    with torch.no_grad():
        params[0].mul_(2)
    optimizer.step()
    assert {key: count for key, count in launches.new().items() if "words" not in key} == {**STEP, **NORM_PASS}


def test_a_pass_over_the_gradients_is_two_more_as_long_as_a_norm_is_unknown(launches: Launches, backend: str) -> None:
    def launched() -> dict[str, int]:
        optimizer.step()
        return {key: count for key, count in launches.new().items() if "words" not in key}

    case = Case(SHAPES, options=RELATIVE)
    params = case.params()
    optimizer = case.optimizer(params, backend)
    case.set_grads(params, 0)
    grad, params[1].grad = params[1].grad, torch.zeros_like(params[1])  # a vector's, of which decay is no part
    assert launched() == {**NORM_PASS, **GRADIENT_PASS, **STEP}
    assert launched() == {**GRADIENT_PASS, **STEP}
    params[1].grad = grad
    assert launched() == {**GRADIENT_PASS, **STEP}
    assert launched() == STEP


def test_only_what_changed_is_sent(launches: Launches, backend: str) -> None:
    tensors = f"{len(SHAPES)} words"
    params, optimizer = begun(Case(SHAPES, options=OPTIONS), backend=backend)
    optimizer.step()
    launches.new()
    optimizer.step()
    assert launches.new() == STEP
    optimizer.param_groups[0]["lr"] *= 0.5
    optimizer.step()
    assert launches.new() == {**STEP, "7 words": 1}
    for param in params:
        param.grad = param.grad.clone()
    optimizer.step()
    assert launches.new() == {**STEP, tensors: 1}
    params[0].grad = None
    optimizer.step()
    assert launches.new() == {**STEP, tensors: 1}
    params[0].data = params[0].data.clone()
    optimizer.step()
    assert launches.new() == {**STEP, f"{2 * len(SHAPES)} words": 1}
    for param in params:
        param.grad = None
    optimizer.step()
    assert not {key for key in launches.new() if "words" not in key}


def test_a_captured_step_has_tables_of_its_own(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """So that no later step changes what a graph does; and they are kept, since nobody knows when it is replayed."""
    from sasgd_fused.backends import device_state
    from sasgd_fused.backends.triton.device_table import DeviceTable
    from sasgd_fused.backends.triton.kernel import TritonKernel

    params, optimizer = begun(Case(SHAPES, options=OPTIONS), backend=backend)
    optimizer.step()
    (made,) = optimizer._stepper.backends or []
    assert isinstance(made, FusedBackend)
    tables = {id(tensor) for tensor in made.memory()}
    with monkeypatch.context() as patch:
        patch.setattr(TritonKernel, "is_capturing", lambda plan: True)
        patch.setattr(DeviceTable, "_new_on_host", None)  # older versions of torch cannot pin memory then
        optimizer.step()
    new = [tensor for tensor in made.memory() if id(tensor) not in tables]
    words = [(table.tolist(), on_host.tolist()) for table, on_host in zip(new[::2], new[1::2], strict=True)]
    assert [len(table) for table, _ in words] == [len(SHAPES), 7]
    assert {id(tensor) for tensor in new} <= device_state._captured.keys()
    for param in params:
        param.grad = param.grad.clone()
    optimizer.param_groups[0]["lr"] *= 0.5
    optimizer.step()
    assert words == [(table.tolist(), on_host.tolist()) for table, on_host in zip(new[::2], new[1::2], strict=True)]


def test_a_capture_without_a_step_before_says_what_to_do(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    from sasgd_fused.backends.triton.kernel import TritonKernel

    case = Case(SHAPES, options=OPTIONS)
    params, optimizer = begun(case, backend=backend)
    before = [param.detach().clone() for param in params]
    params[0].data = params[0].data.clone()
    with (
        monkeypatch.context() as patch,
        pytest.raises(RuntimeError, match=r"CUDA graph: .* take a step before the capture"),
    ):
        patch.setattr(TritonKernel, "is_capturing", lambda plan: True)
        optimizer.step()
    assert all(map(torch.equal, params, before))
    optimizer.step()
    for ours, theirs in zip(params, case.run("reference", 3)[0], strict=True):
        assert_close(ours, theirs, torch.float32)


def test_addresses_are_not_sent_in_a_capture(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    from sasgd_fused.backends.triton.kernel import TritonKernel

    params, optimizer = begun(Case(SHAPES, options=OPTIONS), backend=backend)
    params[0].data = params[0].data.clone()
    monkeypatch.setattr(TritonKernel, "is_capturing", lambda plan: True)
    with pytest.raises(RuntimeError, match=r"CUDA graph: tables of addresses .* take a step before the capture"):
        optimizer.layer_report()
