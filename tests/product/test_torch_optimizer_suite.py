"""What torch's own tests (TestOptimRenewed) ask of every optimizer, on torch's configurations for SGD.

torch ships the configurations and not the tests, so these are ours after theirs, with the defaults of ScaleAmendedSGD.
"""

from __future__ import annotations

from unittest.mock import Mock, patch

import pytest
import torch
from torch.nn import Parameter

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
from torch.testing._internal import common_optimizers as theirs
from torch.testing._internal.common_utils import set_default_dtype

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import BACKENDS
from tests.helpers import DEVICE, FAST_BACKENDS, Case, assert_close, backends, skips_on_device
from tests.product.torch_problem import INFO, Problem, assert_equal, begun, configurations, tamed
from tests.tiers import thin
from tests.unchanged import nothing_changes

pytestmark = [pytest.mark.usefixtures("default_device"), thin(strength=1, slow=0)]

# Where torch has other words, or only a warning: the description of torch's entry → the error and words of ours.
OUR_ERRORS: dict[str, tuple[type[Exception], str]] = {
    "a param group cannot have duplicate parameters": (ValueError, "params: parameter 1 comes twice"),
    "Tensor lr must be 1-element": (ValueError, r"lr: got a tensor of shape \(2,\).*want one real element"),
    "momentum should be between 0 and 1": (ValueError, "momentum: got -0.5, want a finite number >= 0"),
}


@pytest.fixture(params=backends())
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_optim_infos_do_not_specify_global_cliquey_kwargs() -> None:
    assert not any({"foreach", "fused", "differentiable"} & options.keys() for options in configurations(""))


def test_errors() -> None:
    errors = INFO.optim_error_inputs_func("cpu", torch.float32)
    assert {error.optimizer_error_input.desc for error in errors} >= OUR_ERRORS.keys()
    for error in errors:
        bad = error.optimizer_error_input
        assert error.error_on is theirs.OptimizerErrorEnum.CONSTRUCTION_ERROR
        kind, text = OUR_ERRORS.get(bad.desc, (error.error_type, error.error_regex))
        with pytest.raises(kind, match=text):
            ScaleAmendedSGD(bad.params, **bad.kwargs)


@pytest.mark.parametrize("with_schedulers", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "every_second"])
def test_forloop_goes_right_direction(layout: str, with_schedulers: bool, backend: str) -> None:
    for makers in INFO.scheduler_inputs if with_schedulers else [[]]:
        for options in configurations(backend):
            problem = Problem(layout)
            optimizer = ScaleAmendedSGD(problem.params, backend=backend, **tamed(options))
            assert problem.goes_right(optimizer, [make(optimizer) for make in makers], backend), options


def test_param_group_with_lrscheduler_goes_right_direction(backend: str) -> None:
    for makers in INFO.scheduler_inputs:
        problem = Problem()
        weight, bias = problem.params
        optimizer = ScaleAmendedSGD([{"params": [weight]}, {"params": [bias], "lr": 0.01}], backend=backend)
        assert problem.goes_right(optimizer, [make(optimizer) for make in makers], backend)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_tensor_lr(shape: tuple[int, ...], backend: str) -> None:
    for options in configurations(backend):
        expected, _ = begun(backend, 3, **{**options, "lr": 2**-10})
        actual, _ = begun(backend, 3, **{**options, "lr": torch.full(shape, 2**-10)})  # the same in float32
        assert_equal(actual.params, expected.params)


def test_complex(backend: str) -> None:
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 is torch\.complex64, want one of float32"):
        ScaleAmendedSGD([torch.ones(10, 5, dtype=torch.complex64)], backend=backend)


def assert_matches_reference(backend: str, dtype: torch.dtype) -> None:
    """Seven steps, each from the same point; one without gradients, two without those of a layer."""
    for options in configurations(backend):
        case = Case([(3, 2), (3,), (1, 3), (1,), ()], dtype, options=options)
        ours, wanted = case.params(), case.params()
        optimizer, reference = case.optimizer(ours, backend), case.optimizer(wanted, "reference")
        for step in range(7):
            case.idle = {2: range(5), 3: [2, 3], 4: [2, 3]}.get(step, ())
            for params, stepping in (ours, optimizer), (wanted, reference):
                case.set_grads(params, step)
                stepping.step()
            for param, expected in zip(ours, wanted, strict=True):
                state, expected_state = optimizer.state[param], reference.state[expected]
                assert state.keys() == expected_state.keys()
                for got, want in (param, expected), *((state[key], expected_state[key]) for key in state):
                    assert_close(got, want, dtype, str(options))
                    with torch.no_grad():
                        got.copy_(want)


@pytest.mark.parametrize("backend", backends(["foreach"]))
def test_foreach_matches_forloop(backend: str) -> None:
    assert_matches_reference(backend, torch.float64)


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_matches_forloop(dtype: torch.dtype, backend: str) -> None:
    assert_matches_reference(backend, dtype)


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_set_default_dtype_works_with_foreach(default: torch.dtype, backend: str) -> None:
    with set_default_dtype(default):
        assert_matches_reference(backend, torch.float32)


def test_fused_error_on_params_on_meta() -> None:
    """At construction already. Without `fused`, a model may get its memory later, and a kernel with it."""
    params = [Parameter(torch.ones(shape, device="meta")) for shape in ((3, 2), (3,))]
    with pytest.raises(RuntimeError, match="backend: cannot run on meta"):
        ScaleAmendedSGD(params, fused=True)
    optimizer = ScaleAmendedSGD(params, lr=0.5)
    real = optimizer.param_groups[0]["params"] = [Parameter(torch.ones(param.shape)) for param in params]
    for param in real:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert_equal(real, [torch.zeros(3, 2), torch.full((3,), 0.5)])  # s = 2


@pytest.mark.parametrize("scale", [None, 1.0])
def test_fused_does_not_step_if_foundinf(scale: float | None, backend: str) -> None:
    for options in configurations(backend):
        params = [Parameter(torch.ones(shape)) for shape in ((1,), (), (2, 3))]
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer = ScaleAmendedSGD(params, backend=backend, **options)
        grad_scale = None if scale is None else torch.full((1,), scale)
        vars(optimizer).update(grad_scale=grad_scale, found_inf=torch.ones(()))
        with nothing_changes(optimizer, on_device=skips_on_device(backend)):
            optimizer.step()


def test_param_groups_weight_decay(backend: str) -> None:
    for options in map(tamed, configurations(backend)):
        problem = Problem()
        weight, bias = problem.params
        groups = [{"params": [weight], **options}, {"params": [bias], **options, "weight_decay": 0.0}]
        assert problem.goes_right(ScaleAmendedSGD(groups, backend=backend), (), backend), options


def test_param_groups_lr(backend: str) -> None:
    for options in map(tamed, configurations(backend)):
        problem, other = Problem(), Parameter(torch.ones(2))
        groups = [{"params": problem.params, "lr": 1e-3, **options}, {"params": [other]}]
        optimizer = ScaleAmendedSGD(groups, lr=1e-28, backend=backend)
        optimizer.register_step_pre_hook(lambda *_, other=other: setattr(other, "grad", torch.ones(2)))
        assert problem.goes_right(optimizer, (), backend), options
        assert_equal(other, torch.ones(2))


def test_step_is_noop_when_params_have_no_grad(backend: str) -> None:
    for options in configurations(backend):
        optimizer = ScaleAmendedSGD([torch.ones(2, 3), torch.ones(2, 3)], backend=backend, **options)
        with nothing_changes(optimizer):
            assert optimizer.step(lambda: 1.0) == 1.0


def test_step_is_noop_for_zero_grads(backend: str) -> None:
    """Weight decay aside."""
    for options in configurations(backend):
        params = [Parameter(torch.ones(5, 1)), Parameter(torch.ones(5))]
        for param in params:
            param.grad = torch.zeros_like(param)
        ScaleAmendedSGD(params, backend=backend, **{**options, "weight_decay": 0}).step()
        assert_equal(params, [torch.ones(5, 1), torch.ones(5)])


def test_optimizer_can_be_printed() -> None:
    for entry in theirs._get_optim_inputs_including_global_cliquey_kwargs(DEVICE, torch.float32, INFO):
        text = repr(ScaleAmendedSGD([torch.ones(2, 3)], **entry.kwargs))
        assert all(f"{name}: {value}\n" in text for name, value in entry.kwargs.items())


def test_defaults_changed_to_foreach() -> None:
    """To the fastest that runs here."""
    names = ("native", "triton", "foreach", "reference")
    fastest = next(name for name in names if BACKENDS[name].why_not(DEVICE, [torch.float32]) is None)
    make = Mock(wraps=BACKENDS[fastest].make)
    with patch.dict(BACKENDS, {fastest: BACKENDS[fastest]._replace(make=make)}):
        ScaleAmendedSGD(Problem().params)
    assert make.called
