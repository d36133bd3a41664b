"""A run goes on to the bit from a checkpoint, a deep copy or a pickle."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import ALL_BACKENDS, FAST_BACKENDS, LOW_PRECISION, Case, backends, states_of
from tests.tiers import thin
from tests.unchanged import bits

pytestmark = pytest.mark.usefixtures("default_device")
SHAPES = [(6, 3, 3, 3), (6,), (1, 9), (0, 4), (), (150, 130), (5, 150)]
RULES: list[dict[str, Any]] = [
    {},
    {"norms": "freeze", "head": "plain", "decay": "shape"},
    {"factors": "product", "output_width": 30, "eps": 0.5},
    {"norms": "freeze", "factors": "product"},
    {"scale": "relative"},
]
MOMENTA: list[dict[str, Any]] = [{}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True}]
DTYPES = [
    pytest.param(name, dtype, marks=parameter.marks, id=f"{name}-{str(dtype).removeprefix('torch.')}")
    for name, parameter in zip(ALL_BACKENDS, backends(), strict=True)
    for dtype in (*LOW_PRECISION, torch.float64)
    if dtype != torch.float64 or name not in FAST_BACKENDS
]
BEFORE, AFTER = range(4), range(4, 8)


def run(case: Case, params: list[Parameter], optimizer: ScaleAmendedSGD, steps: range) -> None:
    for step in steps:
        case.set_grads(params, step)
        optimizer.step()


def everything(params: list[Parameter], optimizer: ScaleAmendedSGD) -> list[Any]:
    """The bits of weights and state, by the place of the parameter, and the report."""
    states = [
        {key: bits(value) if isinstance(value, Tensor) else value for key, value in state.items()}
        for state in states_of(optimizer, params)
    ]
    assert all(param.isfinite().all() for param in params)  # or nothing could be told apart
    return [[bits(param) for param in params], states, optimizer.layer_report()]


def params_of(optimizer: ScaleAmendedSGD) -> list[Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


@thin(slow=1)
@pytest.mark.parametrize(("backend", "dtype"), DTYPES)
@pytest.mark.parametrize("momentum", MOMENTA, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_from_a_checkpoint(
    rule: dict[str, Any], momentum: dict[str, Any], dtype: torch.dtype, backend: str, two_threads: None
) -> None:
    case = Case(SHAPES, dtype, options={"lr": 2e-5, "weight_decay": 0.02, **rule, **momentum})
    params = case.params()
    optimizer = case.optimizer(params, backend)
    run(case, params, optimizer, BEFORE)
    file = io.BytesIO()
    torch.save({"model": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    run(case, params, optimizer, AFTER)

    file.seek(0)
    saved = torch.load(file, map_location="cpu", weights_only=True)
    resumed = Case(SHAPES, dtype, seed=1).params()
    other = case.optimizer(resumed, backend)
    other.load_state_dict(saved["optimizer"])
    with torch.no_grad():
        for param, value in zip(resumed, saved["model"], strict=True):
            param.copy_(value)
    run(case, resumed, other, AFTER)
    assert everything(resumed, other) == everything(params, optimizer)


@pytest.mark.parametrize("backend", backends())
def test_loading_into_a_run_that_has_begun(backend: str) -> None:
    """As trainers do that go back to the best weights."""
    case = Case(SHAPES, options={"lr": 2e-5, "momentum": 0.9})
    params = case.params()
    optimizer = case.optimizer(params, backend)
    run(case, params, optimizer, BEFORE)
    weights, saved = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
    run(case, params, optimizer, AFTER)
    expected = everything(params, optimizer)
    with torch.no_grad():
        for param, value in zip(params, weights, strict=True):
            param.copy_(value)
    optimizer.load_state_dict(saved)
    run(case, params, optimizer, AFTER)
    assert everything(params, optimizer) == expected


def through_pickle(optimizer: ScaleAmendedSGD) -> ScaleAmendedSGD:
    copied = pickle.loads(pickle.dumps(optimizer))
    assert isinstance(copied, ScaleAmendedSGD)
    return copied


@thin(slow=1)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("rule", [*RULES, {"factors": "mapping"}], ids=str)
def test_from_a_copy(rule: dict[str, Any], begun: bool, duplicate: Any, backend: str) -> None:
    """The copy has the constructor's options, the backend, and parameters of its own."""
    case = Case(SHAPES, options={"lr": 2e-5, "momentum": 0.9, "weight_decay": 0.02, **rule})
    params = case.params()
    if rule == {"factors": "mapping"}:
        case.options["factors"] = {param: 0.5 + place for place, param in enumerate(params)}
    optimizer = case.optimizer(params, backend)
    run(case, params, optimizer, BEFORE if begun else range(0))
    twin = duplicate(optimizer)
    theirs = params_of(twin)
    for row in twin.layer_report():  # a copy has had no gradient yet, of which it could tell the norm
        assert row.gradient_norm is row.growth is row.output_change is None
    assert everything(theirs, twin)[:2] == everything(params, optimizer)[:2]
    run(case, params, optimizer, AFTER)
    assert everything(theirs, twin) != everything(params, optimizer)
    run(case, theirs, twin, AFTER)
    assert everything(theirs, twin) == everything(params, optimizer)
    with pytest.raises(ValueError, match="rows"):
        twin.add_param_group({"params": [Parameter(torch.ones(2, 2))], "rows": 0})


@pytest.mark.parametrize("backend", backends(["native"]))
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_a_copy_stays_with_its_backend(duplicate: Any, backend: str) -> None:
    """A named backend that cannot take float64 still says so, where None would find another."""
    twin = duplicate(ScaleAmendedSGD([Parameter(torch.ones(2, 2))], backend=backend))
    with pytest.raises(RuntimeError, match="float64"):
        twin.add_param_group({"params": [Parameter(torch.ones(2, 2, dtype=torch.float64))]})


@pytest.mark.parametrize("backend", backends())
def test_model_and_optimizer_copied_together_stay_tied(backend: str) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = ScaleAmendedSGD(model.parameters(), lr=0.1, backend=backend)
    twin_model, twin = copy.deepcopy((model, optimizer))
    twin_model(torch.ones(1, 3)).sum().backward()
    twin.step()
    assert not torch.equal(twin_model.weight, model.weight)


@pytest.mark.parametrize("backend", backends())
def test_the_head_stays_the_one_of_construction(backend: str) -> None:
    """Layers that were added later stand at the input, in the copy too."""
    head, added = Parameter(torch.ones(2, 3)), Parameter(torch.ones(3, 4))
    optimizer = ScaleAmendedSGD([head], head="plain", backend=backend)
    optimizer.add_param_group({"params": [added]})
    twin = copy.deepcopy(optimizer)
    assert [row.layer_scale for row in twin.layer_report()] == [12 / 2, 1.0]
    assert twin.layer_report() == optimizer.layer_report()
