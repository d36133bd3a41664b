"""What the tests of the package pytorch_optimizer ask of every optimizer that it lists.

They are ours after theirs (version 4.1.0). Where it is installed, ScaleAmendedSGD also goes through its factory and two
of its wrappers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, backends, randn
from tests.tiers import thin
from tests.unchanged import bits

pytestmark = [pytest.mark.usefixtures("default_device"), thin(strength=1, slow=0)]

# Theirs have a learning rate for each optimizer, with which the loss falls by a third in a few steps.
RECIPES: list[dict[str, Any]] = [
    {"lr": 2.0},
    {"lr": 2.0, "momentum": 0.9},
    {"lr": 2.0, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    {"lr": 2.0, "weight_decay": 1e-3, "norms": "freeze", "head": "plain", "decay": "shape"},
]


@pytest.fixture(params=backends())
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Training:
    """Two clouds of points, and a network with two hidden units that tells them apart."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(42)
        self.model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).to(DEVICE, dtype)
        side = torch.tensor([0.0, 1.0]).repeat_interleave(50)[:, None]
        self.points = 2 * randn((100, 2), torch.Generator().manual_seed(42)) + 4 * side - 2
        self.sides = side

    def loss(self) -> Tensor:
        dtype = self.model[0].weight.dtype
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return nn.functional.binary_cross_entropy_with_logits(self.model(self.points).float(), self.sides)

    def run(self, optimizer: Optimizer, steps: int = 5) -> float:
        """How far the loss fell, as a ratio."""
        before = self.loss().item()
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()
        return before / self.loss().item()


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training(dtype: torch.dtype, recipe: dict[str, Any], backend: str) -> None:
    training = Training(dtype)
    assert training.run(ScaleAmendedSGD(training.model.parameters(), backend=backend, **recipe)) > 1.5


@pytest.mark.parametrize("recipe", RECIPES[2:], ids=str)
def test_tensor_lr(recipe: dict[str, Any], backend: str) -> None:
    training = Training()
    options = {**recipe, "lr": torch.tensor(recipe["lr"])}
    assert training.run(ScaleAmendedSGD(training.model.parameters(), backend=backend, **options)) > 1.5


@pytest.mark.parametrize("recipe", RECIPES[2:], ids=str)
def test_checkpoint_resume(recipe: dict[str, Any], backend: str) -> None:
    """Two steps, and three more after a checkpoint, which the loss of each parameter's distance to 0.1 drives."""
    first, second = (Training() for _ in range(2))
    optimizer, resumed = (ScaleAmendedSGD(t.model.parameters(), backend=backend, **recipe) for t in (first, second))

    def step(training: Training, stepping: Optimizer) -> None:
        def closure() -> Tensor:
            stepping.zero_grad()
            loss = torch.stack([(param - 0.1).square().sum() for param in training.model.parameters()]).sum()
            loss.backward()
            return loss

        stepping.step(closure)

    for _ in range(2):
        step(first, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file))
    second.model.load_state_dict(first.model.state_dict())
    for _ in range(3):
        step(first, optimizer)
        step(second, resumed)
        assert [bits(p) for p in second.model.parameters()] == [bits(p) for p in first.model.parameters()]


def test_closure(backend: str) -> None:
    """With nothing to do its value still comes back."""
    optimizer = ScaleAmendedSGD([Parameter(torch.zeros(1, 1))], backend=backend)
    optimizer.zero_grad()
    assert optimizer.step(lambda: 1.0) == 1.0


def test_missing_and_frozen_gradients(backend: str) -> None:
    """Beside an empty group; and the gradient hangs on a graph."""
    active, inactive = Parameter(torch.ones(2, 2)), Parameter(torch.zeros(1, 1))
    frozen = Parameter(torch.zeros(1, 1), requires_grad=False)
    groups: list[Any] = [{"params": []}, {"params": [active, inactive]}, {"params": [frozen]}]
    optimizer = ScaleAmendedSGD(groups, lr=0.25, backend=backend, output_width=2)
    (active.grad,) = torch.autograd.grad(active.square().sum(), active, create_graph=True)
    optimizer.step(lambda: 0.1)
    optimizer.zero_grad(set_to_none=True)
    assert (active.tolist(), inactive.item(), frozen.item()) == ([[0.0, 0.0]] * 2, 0.0, 0.0)  # s = 2
    assert all(param.grad is None for param in (active, inactive, frozen))


def test_sparse_not_supported(backend: str) -> None:
    param = Parameter(torch.ones(5, 1))
    optimizer = ScaleAmendedSGD([param], backend=backend)
    param.grad = torch.ones(5, 1).to_sparse()
    with pytest.raises(ValueError, match=r"got layout torch\.sparse_coo, want a dense tensor"):
        optimizer.step(lambda: 0.1)


def test_complex_not_supported(backend: str) -> None:
    with pytest.raises(ValueError, match="complex64, want one of"):
        ScaleAmendedSGD([torch.zeros(1, 1, dtype=torch.complex64)], backend=backend)


@pytest.mark.parametrize("option", [{"lr": -1e-2}, {"eps": -1e-6}, {"weight_decay": -1e-3}], ids=str)
def test_learning_rate_and_epsilon_and_weight_decay(option: dict[str, Any]) -> None:
    """Looked at before the parameters."""
    params: Any = None
    with pytest.raises(ValueError, match=f"{next(iter(option))}: got -"):
        ScaleAmendedSGD(params, **option)


def test_maximize(backend: str) -> None:
    """Ascent on a gradient is descent on its opposite."""
    params = [Parameter(torch.full((2, 2), 2.0)) for _ in range(2)]
    for param, sign, maximize in zip(params, (1, -1), (True, False), strict=True):
        param.grad = torch.full((2, 2), 0.5 * sign)
        ScaleAmendedSGD([param], lr=0.1, momentum=0.9, maximize=maximize, backend=backend).step()
    assert bits(params[0]) == bits(params[1])
    assert params[0].ne(2).all()


@pytest.fixture
def package() -> Iterator[Any]:
    """pytorch_optimizer with ScaleAmendedSGD in its list."""
    package = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(package.optimizer.OPTIMIZERS, "scaleamendedsgd", ScaleAmendedSGD)
        yield package


def test_create_optimizer_basic(package: Any) -> None:
    training = Training()
    optimizer = package.create_optimizer(training.model, "ScaleAmendedSGD", lr=2.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0]
    assert training.run(optimizer) > 1.5


def test_create_optimizer_takes_weight_decay_off_biases(package: Any) -> None:
    training = Training()
    optimizer = package.create_optimizer(training.model, "ScaleAmendedSGD", lr=2.0, weight_decay=1e-3)
    assert [[p.dim() for p in group["params"]] for group in optimizer.param_groups] == [[2, 2], [1, 1]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0]
    assert training.run(optimizer) > 1.5


def test_lookahead(package: Any) -> None:
    training = Training()
    assert training.run(package.Lookahead(ScaleAmendedSGD(training.model.parameters(), lr=2.0)), 10) > 1.5


def test_sam_optimizer(package: Any) -> None:
    """Two gradients for a step, the first of weights that are moved aside and back."""
    training = Training()
    optimizer = package.SAM(training.model.parameters(), ScaleAmendedSGD, lr=2.0)
    before = training.loss().item()
    for _ in range(5):
        training.loss().backward()
        optimizer.first_step(zero_grad=True)
        training.loss().backward()
        optimizer.second_step(zero_grad=True)
    assert before > 1.5 * training.loss().item()
