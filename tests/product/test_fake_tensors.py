"""Where tensors have shapes and no values, for estimating memory, a step is taken as torch.optim.SGD takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD, parameter_groups

VARIANTS: list[dict[str, Any]] = [
    {},
    {"backend": "foreach"},
    {"backend": "reference"},
    {"norms": "freeze", "head": "plain", "decay": "shape"},
    {"scale": "relative"},
    {"scale": "relative", "backend": "reference"},
    {"fused": True},
]


def train(options: dict[str, Any], device: str) -> ScaleAmendedSGD:
    model = nn.Sequential(nn.Linear(3, 4, device=device), nn.Linear(4, 2, device=device))
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, momentum=0.9, weight_decay=0.1, **options)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(5, 3, device=device)).sum().backward()
        optimizer.step()
    return optimizer


def buffers(optimizer: ScaleAmendedSGD) -> list[torch.Tensor]:
    return [optimizer.state[param]["momentum_buffer"] for group in optimizer.param_groups for param in group["params"]]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_fake_tensors(options: dict[str, Any]) -> None:
    with FakeTensorMode():
        kept = buffers(train(options, "cpu"))
    assert [tuple(buffer.shape) for buffer in kept] == [(4,), (2,), (4, 3), (2, 4)]
    assert all(isinstance(buffer, FakeTensor) for buffer in kept)


def test_fake_tensors_of_16_bits_with_masters() -> None:
    with FakeTensorMode():
        weight = Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
        optimizer = ScaleAmendedSGD([weight], lr=0.1, momentum=0.9, master_weights=True)
        for _ in range(2):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    assert optimizer.state[weight]["master_weight"].dtype == torch.float32


@pytest.mark.parametrize("options", VARIANTS[:-1], ids=str)
def test_the_meta_device(options: dict[str, Any]) -> None:
    kept = buffers(train(options, "meta"))
    assert [(tuple(buffer.shape), buffer.device.type) for buffer in kept[:2]] == [((4,), "meta"), ((2,), "meta")]


def test_a_kernel_that_was_asked_for_refuses_in_a_sentence() -> None:
    with FakeTensorMode(), pytest.raises(RuntimeError, match="which a FakeTensor does not show"):
        train({"backend": "native"}, "cpu")
