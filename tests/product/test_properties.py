"""Random parameter lists, options and histories: every backend follows the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import ALL_BACKENDS, LAYOUTS, LOW_PRECISION, TOLERANCE, Case, assert_close, backends, states_of
from tests.tiers import SLOW_BACKENDS

EVENTS = ("", "write", "vanish", "resume", "refresh")
SIZES = st.integers(1, 9) | st.sampled_from([1, 2, 16, 17, 40]) | st.just(0)
SHAPES = st.lists(st.lists(SIZES, max_size=4).map(tuple), min_size=1, max_size=7)


@st.composite
def hyperparameters(draw: st.DrawFn) -> dict[str, Any]:
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
    nesterov = momentum > 0 and draw(st.booleans())
    return {
        "lr": draw(st.sampled_from([0.0, 1e-3, 0.01])),
        "momentum": momentum,
        "nesterov": nesterov,
        "dampening": 0.0 if nesterov else draw(st.sampled_from([0.0, 0.5, 1.0])),
        "weight_decay": draw(st.sampled_from([0.0, 1e-3, 0.1])),
        "maximize": draw(st.booleans()),
    }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shapes = draw(SHAPES)
    options = {
        **draw(hyperparameters()),
        "factors": draw(st.sampled_from(["width", "product"])),
        "head": draw(st.sampled_from(["amended", "plain"])),
        "decay": draw(st.sampled_from(["amended", "shape"])),
        "norms": draw(st.sampled_from(["track", "freeze"])),
        "eps": draw(st.sampled_from([1e-3, 1.0])),
        "output_width": draw(st.sampled_from([None, 10])),
    }
    if draw(st.booleans()):
        options = {**options, "scale": "relative", "depth": draw(st.sampled_from([None, 10]))}
        options |= {"factors": "width", "norms": "track", "output_width": None}
    split = draw(st.integers(0, len(shapes)))
    groups = [
        (range(split), {**draw(hyperparameters()), "amend": draw(st.booleans())}),
        (range(split, len(shapes)), {}),
    ]
    case = Case(
        shapes,
        draw(st.sampled_from(LOW_PRECISION)),
        draw(st.sampled_from(sorted(LAYOUTS))),
        draw(st.sampled_from(sorted(LAYOUTS))),
        options,
        groups,
        seed=draw(st.integers(0, 99)),
    )
    # A scale grows with the square of the weights: a step must stay small, or rounding grows without bound.
    largest = largest_scale(case.optimizer(case.params(), "reference"))
    for amended in (options, *(group for _, group in groups if group.get("amend"))):
        amended["lr"] /= largest
    return case


def largest_scale(optimizer: ScaleAmendedSGD) -> float:
    # In the relative scale a step has the length of lr, whatever the scale is.
    is_relative = optimizer.defaults["scale"] == "relative"
    return max([1.0, *(row.layer_scale for row in optimizer.layer_report() if not is_relative)])


def play(case: Case, backend: str, history: list[str]) -> tuple[list[torch.nn.Parameter], Any]:
    """A life of an optimizer: steps, writes by others, gradients that vanish, a resumption."""
    params = case.params()
    optimizer = case.optimizer(params, backend)
    for step, event in enumerate(history):
        case.set_grads(params, step)
        if event == "write":
            with torch.no_grad():
                params[0].mul_(0.5)
        elif event == "vanish":
            params[-1].grad = None
        elif event == "resume":
            state = optimizer.state_dict()
            optimizer = case.optimizer(params, backend)
            optimizer.load_state_dict(state)
        elif event == "refresh":
            optimizer.refresh_norms()
        optimizer.step()
    return params, optimizer


def assert_follows_the_reference(backend: str, case: Case, history: list[str]) -> None:
    expected, reference = play(case, "reference", history)
    actual, optimizer = play(case, backend, history)
    # Weights and gradients have unit variance; a sum of a few of them may cancel, the more so in a single element.
    scale = largest_scale(reference)
    states = zip(states_of(optimizer, actual), states_of(reference, expected), strict=True)
    for index, (a, e, (ours, theirs)) in enumerate(zip(actual, expected, states, strict=True)):
        assert_close(a, e, case.dtype, f"parameter {index}", scale)
        assert ours.keys() == theirs.keys()
        if "momentum_buffer" in ours:
            assert_close(ours["momentum_buffer"], theirs["momentum_buffer"], case.dtype, f"momentum {index}", scale)
        if "gradient_norm_sq" in ours:
            rounding = 100 * TOLERANCE[case.dtype]
            assert ours["gradient_norm_sq"] == pytest.approx(theirs["gradient_norm_sq"], rel=rounding)
        if "row_norm_sq" in ours:
            assert ours["row_norm_sq"] == pytest.approx(theirs["row_norm_sq"], rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("backend", backends(name for name in ALL_BACKENDS if name != "reference"))
def test_every_backend_follows_the_reference(backend: str, two_threads: None) -> None:
    """With a tenth of the examples where they take a hundred times as long."""

    @settings(max_examples=settings.default.max_examples // (10 if backend in SLOW_BACKENDS else 1))
    @given(case=cases(), history=st.lists(st.sampled_from(EVENTS), min_size=1, max_size=5))
    def follows(case: Case, history: list[str]) -> None:
        assert_follows_the_reference(backend, case, history)

    follows()
