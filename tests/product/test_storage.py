"""Masters, momentum in bfloat16 and stochastic rounding: every backend agrees with the float64 reference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import ALL_BACKENDS, LAYOUTS, Case, assert_same_run, backends, other_gradient_dtypes, states_of
from tests.tiers import thin

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
SMALL = {"momentum_dtype": BFLOAT16}
STOCHASTIC = {"rounding": "stochastic", "rounding_seed": 5}
MASTERS = {"master_weights": True}
STORAGES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "masters of bfloat16": (BFLOAT16, MASTERS),
    "masters of float16": (FLOAT16, MASTERS),
    "masters, small momentum": (BFLOAT16, MASTERS | SMALL),
    "masters of float16, small stochastic momentum": (FLOAT16, MASTERS | SMALL | STOCHASTIC),
    "stochastic bfloat16": (BFLOAT16, STOCHASTIC),
    "small momentum": (FLOAT32, SMALL),
    "small stochastic momentum": (FLOAT32, SMALL | STOCHASTIC),
}
OTHERS = backends(name for name in ALL_BACKENDS if name != "reference")
every_storage = pytest.mark.parametrize(("dtype", "storage"), STORAGES.values(), ids=STORAGES)

RULES: tuple[dict[str, Any], ...] = (
    {"momentum": 0.9, "weight_decay": 0.05},
    {"momentum": 0.9, "dampening": 0.5, "head": "plain", "maximize": True},
    {"momentum": 0.9, "nesterov": True, "norms": "freeze", "decay": "shape"},
    {"weight_decay": 0.05, "factors": "product"},
    {"momentum": 0.9, "weight_decay": 0.05, "scale": "relative"},
)
NETWORK = [(6, 3, 3, 3), (6,), (1, 9), (11, 6), (0, 4), (11,), (), (5, 11)]
# Around 8, 16 and 1024 elements and the chunks of both kernels, 8192 and 16384.
SHAPES = [(3, 2), (7,), (3, 3), (15,), (17,), (31, 33), (5, 205), (8191,), (8193,), (3, 5463), (2, 3), (0, 3)]


@thin(slow=1)
@pytest.mark.parametrize("backend", OTHERS)
@every_storage
@pytest.mark.parametrize("options", RULES, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_rules(backend: str, dtype: torch.dtype, storage: dict[str, Any], options: dict[str, Any]) -> None:
    assert_same_run(Case(NETWORK, dtype, options={"lr": 0.01, **options, **storage}), backend)


@pytest.mark.parametrize("backend", OTHERS)
@every_storage
def test_sizes(backend: str, dtype: torch.dtype, storage: dict[str, Any], two_threads: None) -> None:
    groups = [([k], {"lr": 0.05 / max(1, max(shape))}) for k, shape in enumerate(SHAPES)]
    assert_same_run(Case(SHAPES, dtype, options={"momentum": 0.9, **storage}, groups=groups), backend)


@thin(slow=1)
@pytest.mark.parametrize("backend", OTHERS)
@every_storage
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, dtype: torch.dtype, storage: dict[str, Any], layout: str) -> None:
    """Random numbers go by the place in memory, so they are the same for all backends in every layout."""
    shapes = [(6, 4, 3, 3), (5, 6, 1, 1), (8, 5), (9,)]
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01, **storage}
    assert_same_run(Case(shapes, dtype, layout, "misaligned", options), backend)


@other_gradient_dtypes
@pytest.mark.parametrize("backend", OTHERS)
def test_float32_gradients_of_masters(backend: str) -> None:
    def run(name: str) -> list[Tensor]:
        case = Case([(9, 5), (7,)], BFLOAT16, options={"lr": 0.01, "momentum": 0.9, **MASTERS})
        params = case.params()
        optimizer = case.optimizer(params, name)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for param in params:
                param.grad_dtype = None  # any
                param.grad = torch.randn(param.shape, generator=generator).to(param.device)
            optimizer.step()
        return [state["master_weight"] for state in states_of(optimizer, params)]

    for ours, theirs in zip(run(backend), run("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", backends())
def test_ordinary_parameters_beside_stored_ones(backend: str) -> None:
    """float32 parameters have no master, and nothing of theirs is rounded; they step as ever."""
    options = {"lr": 0.01, "momentum": 0.9}

    def run(**storage: Any) -> tuple[Tensor, dict[str, Any]]:
        plain, small = Case([(6, 5)], FLOAT32), Case([(6, 5)], BFLOAT16)
        params = [*plain.params(), *small.params()]
        optimizer = Case([], options={**options, **storage}).optimizer(params, backend)
        for step in range(3):
            plain.set_grads(params[:1], step)
            small.set_grads(params[1:], step)
            optimizer.step()
        return params[0], states_of(optimizer, params)[0]

    expected, state = run()
    for storage in (MASTERS, STOCHASTIC):
        actual, ours = run(**storage)
        assert actual.equal(expected)
        assert ours.keys() == state.keys()


@pytest.mark.parametrize("backend", backends())
@every_storage
def test_a_norm_is_that_of_the_values_as_stored(backend: str, dtype: torch.dtype, storage: dict[str, Any]) -> None:
    """Of the masters where there are any, else of the parameters; carried norms stay those of the weights."""
    case = Case([(300, 70), (9, 300)], dtype, options={"lr": 1e-4, "momentum": 0.9, **storage})
    params, optimizer = case.run(backend, steps=3)
    states = states_of(optimizer, params)
    for row, param, state in zip(optimizer.layer_report(), params, states, strict=True):
        weight = state.get("master_weight", param.detach())
        assert row.row_norm_sq == pytest.approx(float(weight.double().square().sum()) / len(weight), rel=1e-7)
        assert row.stale_steps == 0
        if storage.get("master_weights"):
            assert not weight.equal(weight.to(dtype).float()), "the master is no finer than its parameter"
            assert param.equal(weight.to(dtype))


@pytest.mark.parametrize("backend", backends())
@every_storage
def test_resuming_continues_to_the_bit(backend: str, dtype: torch.dtype, storage: dict[str, Any]) -> None:
    for rule in ({}, {"norms": "freeze", "head": "plain"}):
        case = Case([(30, 70), (70,), (9, 30)], dtype, options={"lr": 1e-4, "momentum": 0.9, **storage, **rule})
        params, optimizer = case.run(backend, steps=3)
        copies = [param.detach().clone().requires_grad_() for param in params]
        other = case.optimizer(copies, backend)  # type: ignore[arg-type]
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for step in range(3, 6):
            for of_params, resumed in ((params, optimizer), (copies, other)):
                case.set_grads(of_params, step)
                resumed.step()
        for param, its_copy in zip(params, copies, strict=True):
            assert param.equal(its_copy)
        for mine, theirs in zip(states_of(optimizer, params), states_of(other, copies), strict=True):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(theirs[key])) for key in mine)


@pytest.mark.parametrize(("momentum_dtype", "bytes_moved"), [(None, 20), (BFLOAT16, 16)])
def test_bytes_of_a_float32_parameter(momentum_dtype: torch.dtype | None, bytes_moved: int) -> None:
    """Weights and momentum are read and written, gradients read."""
    options = {"lr": 1e-3, "momentum": 0.9, **({"momentum_dtype": momentum_dtype} if momentum_dtype else {})}
    (param,), optimizer = Case([(40, 30)], options=options).run("native", steps=1)
    assert param.grad is not None
    (state,) = states_of(optimizer, [param])
    buffer = state["momentum_buffer"]
    assert 2 * param.element_size() + param.grad.element_size() + 2 * buffer.element_size() == bytes_moved
    assert set(state) == {"momentum_buffer"}


@pytest.mark.parametrize("backend", backends())
def test_options_cost_nothing_where_they_are_not_used(backend: str) -> None:
    """No master, count or other dtype appears in the state of an ordinary run."""
    for dtype in (BFLOAT16, FLOAT16, FLOAT32):
        params, optimizer = Case([(6, 5)], dtype, options={"lr": 0.01, "momentum": 0.9}).run(backend)
        (state,) = states_of(optimizer, params)
        assert set(state) == {"momentum_buffer"}
        assert state["momentum_buffer"].dtype == dtype
