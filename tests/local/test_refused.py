"""What is refused: each error names the argument, what came and what is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sasgd_fused.local import (
    capture,
    condition_report,
    graph_factors,
    local_hessian,
    measured_factors,
    spectral_density,
)

LINEAR, ONES = nn.Linear(3, 2), torch.ones(4, 3)
HESSIAN = local_hessian(LINEAR, ONES)
ALL: list[Callable[..., Any]] = [capture, condition_report, graph_factors, local_hessian, measured_factors]


@pytest.mark.parametrize("function", ALL)
def test_networks_and_inputs(function: Callable[..., Any]) -> None:
    nan = torch.tensor([[1.0, torch.nan, 1.0]])
    for model, inputs, error, message in (
        ("linear", ONES, TypeError, "^model: got str, want an nn.Module"),
        (nn.Linear(3, 2, device="meta"), ONES, ValueError, "^model: got Linear on the meta device, want one with val"),
        (LINEAR, ONES.to("meta"), ValueError, "^inputs: got a tensor on the meta device, want one with values"),
        (LINEAR, ONES[:0], ValueError, r"^inputs: got an empty tensor, \(0, 3\), want at least one sample"),
        (LINEAR, nan, ValueError, "^inputs: got NaN among the values, want numbers"),
    ):
        with pytest.raises(error, match=message):
            function(model, inputs)
    with torch.inference_mode():
        made = nn.Linear(3, 2)
        with pytest.raises(RuntimeError, match=r"^got a call inside torch\.inference_mode, which has no gradients"):
            function(LINEAR, ONES)
    with pytest.raises(RuntimeError, match=r"^model: got Linear with tensors that were made in torch\.inference_mode"):
        function(made, ONES)


@pytest.mark.parametrize("count", [0, 1.5, True])
def test_counts(count: Any) -> None:
    for call, message in (
        (lambda: HESSIAN.trace(count), f"^probes: got {count}, want a positive integer"),
        (lambda: HESSIAN.diagonal(count), f"^probes: got {count}, want a positive integer"),
        (lambda: spectral_density(HESSIAN, count), f"^probes, steps: got {count} and 60, want positive integers"),
        (lambda: spectral_density(HESSIAN, 1, count), f"^probes, steps: got 1 and {count}, want positive integers"),
        (lambda: condition_report(LINEAR, ONES, probes=count), f"^probes: got {count}, want a positive integer"),
        (lambda: condition_report(LINEAR, ONES, steps=count), f"^steps: got {count}, want a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: capture(LINEAR, ONES, LINEAR), TypeError, "^blocks: got a Linear, want names of modules"),
        (lambda: condition_report(LINEAR, ONES, [3]), TypeError, "^blocks: got a int, want names of modules"),  # type: ignore[list-item]
        (
            lambda: capture(LINEAR, ONES, loss=lambda output: output),
            ValueError,
            r"^loss: got \(4, 2\), want a function",
        ),
        (lambda: capture(LINEAR, ONES, loss=lambda _: 1.0), ValueError, "^loss: got float, want a function that ret"),  # type: ignore[return-value]
        (
            lambda: capture(LINEAR, ONES, loss=lambda _: ONES.sum()),
            ValueError,
            "^loss: got a constant, want a function",
        ),
        (
            lambda: local_hessian(LINEAR, ONES, displacement=[1.0]),
            TypeError,
            "^displacement: got a list, want a tensor in the shape of the output",
        ),
    ],
)
def test_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
