"""Parameters come in every form that torch takes, and gradients, which are only read, in every form autograd makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, LOW_PRECISION, Case, assert_close, backends, randn
from tests.unchanged import bits


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).to(DEVICE)


@pytest.mark.parametrize("backend", backends())
def test_forms_of_params(backend: str) -> None:
    """Lists, generators, views, names, groups with any of these: always the same step, and the same after it."""
    results = []
    for form in range(7):
        model = network()
        weights, others = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() < 2]
        params: Any = [
            list(model.parameters()),
            model.parameters(),
            dict(model.named_parameters()).values(),
            model.named_parameters(),
            filter(lambda p: p.requires_grad, model.parameters()),
            [{"params": (p for p in weights)}, {"params": iter(others)}],
            [{"params": [("a", weights[0]), ("b", weights[1])]}, {"params": list(zip("cdef", others, strict=False))}],
        ][form]
        optimizer = ScaleAmendedSGD(params, lr=0.01, momentum=0.9, backend=backend)
        for _ in range(2):
            optimizer.zero_grad()
            model(randn((2, 1, 4, 4), torch.Generator().manual_seed(1))).square().sum().backward()
            optimizer.step()
        results.append([bits(param) for param in model.parameters()])
    assert all(result == results[0] for result in results)


@pytest.mark.usefixtures("default_device")
@pytest.mark.parametrize("backend", backends())
def test_tied_weights_move_once(backend: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    optimizer = ScaleAmendedSGD(model.parameters(), lr=0.5, backend=backend)
    before = model.head.weight.detach().clone()
    (row,) = optimizer.layer_report()
    model.head(model.embedding(torch.tensor([1]))).sum().backward()
    optimizer.step()
    assert model.head.weight.grad is not None
    assert_close(model.embedding.weight, before - row.effective_lr * model.head.weight.grad, torch.float32)


@pytest.mark.parametrize("backend", backends())
def test_a_parameter_without_gradient_is_not_touched(backend: str) -> None:
    case = Case([(3, 4), (5, 3)], options={"momentum": 0.9, "norms": "freeze"}, idle=[0])
    (idle, _), optimizer = case.run(backend)
    assert bits(idle) == bits(case.params()[0])
    assert idle._version == case.params()[0]._version
    assert idle not in optimizer.state


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_gradients_are_left_as_they_were(dtype: torch.dtype, backend: str) -> None:
    params, optimizer = Case([(4, 3), (4,)], dtype, options={"momentum": 0.9, "weight_decay": 0.1}).run(backend)
    grads = [param.grad for param in params]
    before = [(bits(grad), grad._version) for grad in grads if grad is not None]
    optimizer.step()
    assert all(param.grad is grad for param, grad in zip(params, grads, strict=True))
    assert [(bits(grad), grad._version) for grad in grads if grad is not None] == before


@pytest.mark.usefixtures("default_device")
@pytest.mark.parametrize("backend", backends())
def test_expanded_and_differentiable_gradients(backend: str) -> None:
    """A gradient may repeat one number in memory, or hang on a graph of its own."""
    params, expected = ([Parameter(torch.ones(3, 4)), Parameter(torch.ones(2, 3))] for _ in range(2))
    params[0].grad, expected[0].grad = torch.full((1, 1), 2.0).expand(3, 4), torch.full((3, 4), 2.0)
    (params[1].grad,) = torch.autograd.grad((params[1] ** 3).sum(), params[1], create_graph=True)
    expected[1].grad = params[1].grad.detach().clone()
    ScaleAmendedSGD(params, backend=backend).step()
    ScaleAmendedSGD(expected, backend=backend).step()
    assert [bits(p) for p in params] == [bits(p) for p in expected]


@pytest.mark.parametrize("backend", backends())
def test_a_model_that_changes_its_dtype_on_the_way(backend: str) -> None:
    """The state follows: momentum has the dtype of its parameter."""
    model = network()
    optimizer = ScaleAmendedSGD(model.parameters(), lr=0.01, momentum=0.9, backend=backend)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model.to(dtype)
        optimizer.zero_grad()
        model(randn((2, 1, 4, 4)).to(dtype)).square().mean().backward()
        optimizer.step()
        for param in model.parameters():
            assert param.isfinite().all()
            assert optimizer.state[param]["momentum_buffer"].dtype == dtype


@pytest.mark.parametrize("backend", backends())
def test_weight_averaging(backend: str) -> None:
    """torch.optim.swa_utils: the averages, their learning-rate schedule, and a swap into the model and on."""
    model = network()
    optimizer = ScaleAmendedSGD(model.parameters(), lr=0.01, backend=backend)
    mean, moving = AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    schedule = SWALR(optimizer, swa_lr=0.001, anneal_epochs=2)
    batches = list(randn((3, 8, 1, 4, 4)))
    weights = []
    for batch in batches:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        mean.update_parameters(model)
        moving.update_parameters(model)
        schedule.step()
        weights.append(model[0].weight.detach().clone())
    assert_close(mean.module[0].weight, torch.stack(weights).mean(0), torch.float32)
    assert_close(moving.module[0].weight, weights[0] / 4 + weights[1] / 4 + weights[2] / 2, torch.float32)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    update_bn(batches, mean)
    model.load_state_dict(mean.module.state_dict())
    norm = float(model[3].weight.detach().double().square().sum()) / 3
    assert optimizer.layer_report()[-1].row_norm_sq == pytest.approx(norm, rel=1e-6)
