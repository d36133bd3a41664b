"""Every backend agrees with the float64 reference, over options, dtypes, sizes and layouts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.helpers import (
    ALL_BACKENDS,
    LAYOUTS,
    LOW_PRECISION,
    Case,
    assert_close,
    assert_same_run,
    backends,
    other_gradient_dtypes,
    randn,
)
from tests.tiers import thin

CHUNK = 16384
SIZES = (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1023, 1024, 1025, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5)
OTHERS = backends(name for name in ALL_BACKENDS if name != "reference")
DTYPE_IDS = {"ids": lambda dtype: str(dtype).removeprefix("torch.")}

MOMENTA: tuple[dict[str, Any], ...] = (
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "nesterov": True},
)
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"norms": "freeze", "head": "plain", "decay": "shape"},
    {"factors": "product", "decay": "shape"},
    {"factors": "product", "norms": "freeze", "output_width": 7},
    {"head": "plain", "maximize": True},
    {"scale": "relative"},
    {"scale": "relative", "head": "plain", "decay": "shape", "depth": 7, "maximize": True},
)
NETWORK = [(6, 3, 3, 3), (6,), (1, 9), (11, 6), (0, 4), (11,), (), (5, 11)]


DECAYS: tuple[dict[str, Any], ...] = ({}, {"weight_decay": 0.05})


def network_for(rule: dict[str, Any]) -> list[tuple[int, ...]]:
    """In the relative scale all steps of a scalar have one length, and two that cancel leave the rounding of both."""
    return [shape for shape in NETWORK if shape or "scale" not in rule]


@thin  # the coefficients are made in float64, before anything depends on the dtype
@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("dtype", LOW_PRECISION, **DTYPE_IDS)
@pytest.mark.parametrize("decay", DECAYS, ids=str)
@pytest.mark.parametrize("momentum", MOMENTA, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_options(
    backend: str, dtype: torch.dtype, decay: dict[str, Any], momentum: dict[str, Any], rule: dict[str, Any]
) -> None:
    assert_same_run(Case(network_for(rule), dtype, options={"lr": 0.01, **decay, **momentum, **rule}), backend)


def test_foreach_in_float64() -> None:
    for decay, momentum, rule in itertools.product(DECAYS, MOMENTA, RULES):
        assert_same_run(Case(NETWORK, torch.float64, options={"lr": 0.01, **decay, **momentum, **rule}), "foreach")


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("dtype", LOW_PRECISION, **DTYPE_IDS)
def test_sizes(backend: str, dtype: torch.dtype, two_threads: None) -> None:
    """Weights of each size as a matrix and as a vector, one after the other, the last one empty; by two threads."""
    shapes: list[tuple[int, ...]] = []
    for size in SIZES:
        rows = next(r for r in (7, 5, 3, 2, 1) if size % r == 0)
        shapes += [(rows, size // rows), (size,)]
    shapes += [(2, 3), (0, 3)]
    # s = S / n_B is about size / 2000: the learning rate makes up for it. With a smaller n_B float16 would overflow,
    # and a device leaves a layer that is not finite as it is for a step.
    groups: Any = [([2 * k], {"lr": 50 / max(size, 1)}) for k, size in enumerate(SIZES)]
    groups.append(([*range(1, 2 * len(SIZES), 2), len(shapes) - 2, len(shapes) - 1], {}))
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01, "output_width": 2000}
    assert_same_run(Case(shapes, dtype, options=options, groups=groups), backend)


@thin(slow=1)  # Python decides on the layout; a kernel sees whether memory is dense and aligned
@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("dtype", LOW_PRECISION, **DTYPE_IDS)
@pytest.mark.parametrize(("layout", "grad_layout"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_layouts(backend: str, dtype: torch.dtype, layout: str, grad_layout: str) -> None:
    """Also dimensions of size 1, whose strides do not count."""
    shapes = [(6, 4, 3, 3), (5, 6, 1, 1), (1, 5, 2, 2), (8, 5), (8, 1), (9,)]
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
    assert_same_run(Case(shapes, dtype, layout, grad_layout, options), backend)


@pytest.mark.parametrize("backend", backends())
def test_a_strided_view_leaves_its_neighbours_alone(backend: str) -> None:
    case = Case([(4, 3), (5,)], layout="every_second", options={"lr": 0.1, "momentum": 0.9})
    params, _ = case.run(backend)
    for param in params:
        base = param.detach().as_strided((*param.shape, 2), (*param.stride(), 1))
        assert base[..., 1].eq(0).all()
        assert base[..., 0].ne(0).all()


@other_gradient_dtypes
@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], **DTYPE_IDS)
def test_float32_gradients_of_16_bit_parameters(backend: str, dtype: torch.dtype) -> None:
    case = Case([(9, 5), (7,)], dtype, options={"lr": 0.01, "momentum": 0.9})
    ours, plain = case.params(), case.params()
    optimizer, expected = case.optimizer(ours, backend), case.optimizer(plain, "reference")
    for step in range(3):
        for params in (ours, plain):
            generator = torch.Generator().manual_seed(step)
            for param in params:
                param.grad_dtype = None  # any
                param.grad = randn(param.shape, generator)
        optimizer.step()
        expected.step()
    for a, e in zip(ours, plain, strict=True):
        assert_close(a, e, dtype)


@pytest.mark.parametrize("backend", OTHERS)
def test_groups_have_their_own_hyperparameters(backend: str) -> None:
    """Three groups in one step, one of them ascending, one without momentum, one unamended."""
    groups = (
        ([0, 3], {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.1}),
        ([1, 2], {"momentum": 0.0, "maximize": True}),
        ([4], {"amend": False, "nesterov": True}),
    )
    shapes = [(5, 4), (6, 5), (7,), (3, 6), (2, 3)]
    assert_same_run(Case(shapes, options={"lr": 0.01, "momentum": 0.9}, groups=groups), backend, steps=4)


@pytest.mark.parametrize("backend", OTHERS)
def test_mixed_dtypes_in_one_optimizer(backend: str) -> None:
    def run(name: str) -> list[torch.nn.Parameter]:
        torch.manual_seed(0)
        params = [torch.nn.Parameter(randn((6, 5)).to(dtype)) for dtype in LOW_PRECISION]
        optimizer = Case([], options={"lr": 0.01, "momentum": 0.9}).optimizer(params, name)
        for _ in range(3):
            for param in params:
                param.grad = randn((6, 5)).to(param.dtype)
            optimizer.step()
        return params

    for actual, expected in zip(run(backend), run("reference"), strict=True):
        assert_close(actual, expected, expected.dtype)
