"""Parameters that lie over the same memory: each update is applied, as in torch.optim.SGD, and norms are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import assert_close, backends, cpu_only
from tests.tiers import thin

pytestmark = pytest.mark.usefixtures("default_device")


def start() -> Tensor:
    return torch.linspace(-1, 2, 24).view(4, 6)


def transposed(weight: Parameter) -> list[Tensor]:
    return [weight.detach().t()]


def same(weight: Parameter) -> list[Tensor]:
    return [weight.data]


def rows(weight: Parameter) -> list[Tensor]:
    return [weight.detach()[1:3]]


def windows(weight: Parameter) -> list[Tensor]:
    flat = weight.data.view(-1)
    return [flat[k : k + 8].view(2, 4) for k in (0, 4, 8)]


def by_address(weight: Parameter) -> list[Tensor]:
    """Two storages over one piece of memory."""
    return [torch.from_numpy(weight.detach().numpy())[:, :3]]


WAYS = [transposed, same, rows, windows, pytest.param(by_address, marks=cpu_only("numpy's memory"))]


def train(make: Callable[[list[Parameter]], Any], way: Callable[[Parameter], list[Tensor]]) -> Tensor:
    weight = Parameter(start())
    params = [weight, *map(Parameter, way(weight))]
    optimizer = make(params)
    for step in range(4):
        for k, param in enumerate(params):
            param.grad = torch.full_like(param, 0.1 * (k + 1) + step)
        optimizer.step()
    return weight.detach()


@thin(slow=1)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("way", WAYS)
def test_no_update_is_lost(way: Callable[[Parameter], list[Tensor]], backend: str) -> None:
    expected = train(lambda params: SGD(params, lr=0.1, momentum=0.9), way)
    actual = train(
        lambda params: ScaleAmendedSGD([{"params": params, "amend": False}], lr=0.1, momentum=0.9, backend=backend), way
    )
    torch.testing.assert_close(actual, expected)


@thin(slow=1)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("way", WAYS)
def test_scales_are_those_of_the_weights_as_they_are(way: Callable[[Parameter], list[Tensor]], backend: str) -> None:
    """Whoever else writes the memory; and nobody is told of writes that were the optimizer's own."""
    optimizers = []

    def make(params: list[Parameter]) -> ScaleAmendedSGD:
        optimizers.append(ScaleAmendedSGD(params, lr=0.01, momentum=0.9, weight_decay=0.1, backend=backend))
        return optimizers[-1]

    def literally(params: list[Parameter]) -> Any:
        return Literally(params)

    assert_close(train(make, way), train(literally, way), torch.float32)
    assert not any(row.stale_steps for row in optimizers[0].layer_report())


class Literally:
    """Equations (22)-(24) with the factors n_B / rows, one parameter after the other."""

    def __init__(self, params: list[Parameter]) -> None:
        self.params = params
        self.buffers: list[Any] = [None] * len(params)

    def step(self) -> None:
        for k, param in enumerate(self.params):
            weight, rows = param.data.double(), param.shape[0]
            norm = max(float(weight.square().sum()) / rows, 1e-3)
            g = norm * rows / self.params[-1].shape[0] * (param.grad.double() + 0.1 * weight)
            self.buffers[k] = g if self.buffers[k] is None else 0.9 * self.buffers[k] + g
            param.data.copy_(weight - 0.01 * self.buffers[k])


@pytest.mark.parametrize("backend", backends())
def test_parameters_that_come_to_share_memory(backend: str) -> None:
    params = [Parameter(torch.zeros(2, 3)), Parameter(torch.zeros(3, 2))]
    optimizer = ScaleAmendedSGD([{"params": params, "amend": False}], lr=1.0, backend=backend)
    for step in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        if step == 0:
            params[1].data = params[0].data.t()
    assert params[0].eq(-3).all()


@pytest.mark.parametrize("backend", backends())
def test_masters_of_shared_memory_follow_each_other(backend: str) -> None:
    weight = Parameter(torch.ones(2, 4, dtype=torch.bfloat16))
    params = [weight, Parameter(weight.data.t())]
    optimizer = ScaleAmendedSGD([{"params": params, "amend": False}], lr=1.0, master_weights=True, backend=backend)
    for _ in range(2):
        for param in params:
            param.grad = torch.full_like(param, 0.25)
        optimizer.step()
    assert weight.eq(0).all()
