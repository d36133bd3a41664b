"""What timm's tests ask of every optimizer in its registry, with the options that its factory gives to SGD.

They are ours after theirs (timm 1.0.31), with the defaults of ScaleAmendedSGD.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, LAYOUTS, LOW_PRECISION, Case, assert_close, backends, randn
from tests.tiers import thin
from tests.unchanged import bits, nothing_changes

pytestmark = [pytest.mark.usefixtures("default_device"), thin(strength=1, slow=0)]

# timm's learning rate is 0.01, and for some optimizers a smaller one, as for ours: with it, Nesterov momentum and norms
# that follow the weights, standard normal weights of five columns may leave float32.
LR = 1e-3
CASE = Case([(16, 8), (8,)])


@pytest.fixture(params=backends())
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def create(params: Any, backend: str | None = None, lr: float | Tensor = 1e-2, **options: Any) -> ScaleAmendedSGD:
    """As timm's factory with timm's defaults for SGD."""
    return ScaleAmendedSGD(params, lr, **{"momentum": 0.9, "nesterov": True, "backend": backend, **options})


def run(optimizer: Optimizer, params: Sequence[Tensor], steps: Iterable[int]) -> list[list[int]]:
    for step in steps:
        CASE.set_grads(params, step)
        optimizer.step()
    return [bits(param) for param in params]


FORMS: dict[str, Callable[..., ScaleAmendedSGD]] = {
    "list": lambda weight, bias, backend: create([weight, bias], backend, LR),
    "groups": lambda weight, bias, backend: create([{"params": weight}, {"params": bias, "lr": LR}], backend, LR / 10),
    "one group": lambda _, bias, backend: create([{"params": bias, "lr": LR}], backend, LR / 10),
    "one group's lr": lambda _, bias, backend: ScaleAmendedSGD([{"params": bias, "lr": LR}], backend=backend),
}


class Squares:
    """timm's problem, which is torch's."""

    def __init__(self, form: str, backend: str, layout: str = "contiguous") -> None:
        generator = torch.Generator().manual_seed(0)
        self.input, weight, bias = (randn(shape, generator) for shape in ((5,), (10, 5), (10,)))
        self.params = [Parameter(LAYOUTS[layout](p.shape, p.dtype).copy_(p)) for p in (weight, bias)]
        self.optimizer = FORMS[form](*self.params, backend)

    def loss(self) -> Tensor:
        weight, bias = self.params
        self.optimizer.zero_grad()
        loss = (weight.mv(self.input.to(weight.dtype)) + bias).square().sum()
        loss.backward()
        return loss.detach()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.step(self.loss)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["contiguous", "every_second"])
def test_optim_factory(layout: str, form: str, backend: str) -> None:
    problem = Squares(form, backend, layout)
    before = problem.loss()
    problem.run(4 if backend == "triton" else 200)  # Triton's interpreter is slow
    assert problem.loss() < before


@pytest.mark.parametrize("form", FORMS)
def test_optim_factory_state_dict(form: str, backend: str) -> None:
    """The state goes on in another dtype: with the values that it had, and in about the same direction."""
    problem, twin = Squares(form, backend), Squares(form, backend)
    problem.run(3)
    dtype = torch.float64 if backend in ("foreach", "reference") else torch.bfloat16
    twin.params = [Parameter(param.detach().to(dtype)) for param in problem.params]
    twin.optimizer = FORMS[form](*twin.params, backend)
    saved = copy.deepcopy(problem.optimizer.state_dict())
    twin.optimizer.load_state_dict(saved)
    for state, old in zip(twin.optimizer.state.values(), saved["state"].values(), strict=True):
        assert all(bits(state[name]) == bits(old[name].to(dtype)) for name in old)
    moves = []
    for each in (problem, twin):
        start = torch.cat([param.detach().double().flatten() for param in each.params])
        each.run(3)
        moves.append(torch.cat([param.detach().double().flatten() for param in each.params]) - start)
    assert torch.cosine_similarity(moves[0], moves[1], dim=0) > 0.9


@pytest.mark.parametrize("backend", backends(["native", "foreach", "reference"]))
def test_optimizer_convergence_on_rosenbrock(backend: str) -> None:
    """By turns along one coordinate and along the other."""
    point, solution = Parameter(torch.full((2,), 1.5)), torch.ones(2)
    optimizer = create([point], backend, LR)
    before = point.detach().dist(solution)
    for step in range(2000):
        x, y = point.tolist()
        slope = [-400 * x * (y - x * x) - 2 * (1 - x), 0.0] if step % 2 else [0.0, 200 * (y - x * x)]
        point.grad = torch.tensor(slope)
        optimizer.step()
    assert point.detach().dist(solution) <= before


def test_optimizer_convergence_of_a_model(backend: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid()).to(DEVICE)
    optimizer = create(model.parameters(), backend, LR)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(torch.arange(1.0, 7.0).view(3, 2) / 10).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_optim_factory_common_kwargs() -> None:
    (group,) = create([torch.ones(4, 4)], eps=1e-6, momentum=0.5, weight_decay=0.1).param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.1)


def test_optimizer_no_grad_step(backend: str) -> None:
    optimizer = create(CASE.params(), backend, weight_decay=0.01)
    with nothing_changes(optimizer):
        optimizer.step()


@pytest.mark.parametrize("duplicate", [lambda pair: pickle.loads(pickle.dumps(pair)), copy.deepcopy])
def test_optimizer_copy(duplicate: Callable[[Any], Any], backend: str) -> None:
    params = CASE.params()
    optimizer = create(params, backend, weight_decay=0.01)
    run(optimizer, params, range(2))
    others, other = duplicate((params, optimizer))
    assert run(other, others, range(2, 4)) == run(optimizer, params, range(2, 4))


def test_optimizer_param_group_independent(backend: str) -> None:
    """As long as the last layer has as many rows in both, which are the n_B of the other group."""
    case = Case([(16, 8), (16, 8)])
    other, weight = case.params()
    _, alone = case.params()
    optimizer = create([other], backend)
    optimizer.add_param_group({"params": [weight], "lr": 1e-4})
    single = create([alone], backend, lr=1e-4)
    for step in range(8):
        case.set_grads([other, weight], step)
        alone.grad = weight.grad
        optimizer.step()
        single.step()
    assert_close(weight, alone, torch.float32)


@pytest.mark.parametrize("tensor_lr", [False, True])
def test_optimizer_zero_lr(tensor_lr: bool, backend: str) -> None:
    params, lr = CASE.params(), torch.tensor(0.01)
    optimizer = create(params, backend, lr if tensor_lr else 0.01, weight_decay=0.01)
    before = run(optimizer, params, range(3))
    if tensor_lr:
        lr.zero_()
    else:
        optimizer.param_groups[0]["lr"] = 0.0
    assert run(optimizer, params, range(3, 6)) == before


def test_optimizer_tensor_lr(backend: str) -> None:
    """Written in place between the steps; the same numbers in float32."""
    floats, tensors = CASE.params(), CASE.params()
    lr = torch.zeros(())
    expected, actual = (
        create(params, backend, how, weight_decay=0.1) for params, how in ((floats, 1.0), (tensors, lr))
    )
    for step, number in enumerate([2**-7, 2**-8, 0.0, 0.0, 2**-9]):
        expected.param_groups[0]["lr"] = number
        lr.fill_(number)
        assert run(actual, tensors, [step]) == run(expected, floats, [step])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimizer_resume(dtype: torch.dtype, backend: str) -> None:
    params = Case(CASE.shapes, dtype).params()
    optimizer = create(params, backend, weight_decay=0.01)
    run(optimizer, params, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    resumed_params = [Parameter(param.detach().clone()) for param in params]
    resumed = create(resumed_params, backend, weight_decay=0.01)
    resumed.load_state_dict(saved)
    assert run(resumed, resumed_params, range(3, 6)) == run(optimizer, params, range(3, 6))
    assert all(resumed.state[param]["momentum_buffer"].dtype == dtype for param in resumed_params)


@pytest.mark.parametrize("dtype", LOW_PRECISION[1:])
def test_optimizer_low_precision(dtype: torch.dtype, backend: str) -> None:
    params = Case(CASE.shapes, dtype).params()
    run(create(params, backend, weight_decay=0.01), params, range(3))
    assert all(param.dtype == dtype and param.isfinite().all() for param in params)


def test_optimizer_grad_unchanged(backend: str) -> None:
    params = CASE.params()
    optimizer = create(params, backend, weight_decay=0.1)
    for step in range(2):
        CASE.set_grads(params, step)
        before = [bits(param.grad) for param in params]
        optimizer.step()
        assert [bits(param.grad) for param in params] == before
