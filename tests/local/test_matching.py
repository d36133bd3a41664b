"""Proposition 1: back-matching by one gradient step is back-propagation; and other solvers."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sasgd_fused.local import BlockLoss, back_matching, chain, exact, gradient_steps, one_step
from tests.local.networks import dense_jacobian, mixed_blocks, relative

Loss = Callable[[Tensor], Tensor]


def problem(dtype: torch.dtype = torch.float32, reduction: str = "mean") -> tuple[nn.Sequential, Tensor, Loss]:
    torch.manual_seed(0)
    model = nn.Sequential(*mixed_blocks()).to(dtype)
    images, labels = torch.randn(6, 3, 8, 8, dtype=dtype), torch.randint(0, 5, (6,))
    return model, images, lambda output: F.cross_entropy(output, labels, reduction=reduction)


def backward(model: nn.Module, inputs: Tensor, loss: Loss) -> dict[nn.Parameter, Tensor]:
    """What back-propagation gives, with the model left as it was."""
    twin = copy.deepcopy(model)
    loss(twin(inputs)).backward()
    return {
        param: of_twin.grad
        for param, of_twin in zip(model.parameters(), twin.parameters(), strict=True)
        if of_twin.grad is not None
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_are_the_bits_of_back_propagation(dtype: torch.dtype, reduction: str) -> None:
    model, images, loss = problem(dtype, reduction)
    wanted = backward(model, images, loss)
    found = back_matching(model, images, loss)
    assert found.gradients.keys() == wanted.keys() == set(model.parameters())
    assert all(torch.equal(found.gradients[param], wanted[param]) for param in wanted)
    assert found.loss == loss(copy.deepcopy(model)(images))


def test_a_step_gives_the_weights_of_back_propagation() -> None:
    model, images, loss = problem()
    twin = copy.deepcopy(model)
    loss(twin(images)).backward()
    for param, gradient in back_matching(model, images, loss).gradients.items():
        assert param.grad is None
        param.grad = gradient
    for network in (model, twin):
        torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01).step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_each_block_is_run_once_as_in_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    twin, inputs = copy.deepcopy(model), torch.randn(8, 4, dtype=torch.float64)
    before = torch.get_rng_state()
    found = back_matching(model, inputs, torch.sum)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    twin(inputs).sum().backward()
    assert torch.equal(torch.get_rng_state(), after)
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))
    for param, of_twin in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(found.gradients[param], of_twin.grad)


def literal(blocks: Sequence[nn.Module], inputs: Tensor, loss: Loss, by_new_weights: bool = False) -> list[Tensor]:
    """Procedure 1 word for word: losses to targets z^{k+½}, each block run again for its own.

    Returns the gradients in the order of the parameters, and leaves the new weights if the targets are to be by them.
    """
    signals = [inputs]
    for block in blocks:
        signals.append(block(signals[-1].clone()).detach())
    gradients = {param: torch.zeros_like(param) for block in blocks for param in block.parameters()}
    targets: list[Tensor] = []

    def matching(block: nn.Module, signal: Tensor) -> Tensor:
        output = block(signal.clone())
        return (targets[-1] - output).square().sum() / 2 if targets else loss(output)

    for block, signal in reversed(list(zip(blocks, signals[:-1], strict=True))):
        params = list(block.parameters())
        for param, gradient in zip(
            params, torch.autograd.grad(matching(block, signal), params) if params else (), strict=True
        ):
            gradients[param] += gradient
            if by_new_weights:
                param.data -= gradient
        point = signal.requires_grad_()
        (slope,) = torch.autograd.grad(matching(block, point), point)
        targets.append((point - slope).detach())
    return list(gradients.values())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_targets_as_in_the_paper_give_the_same_but_for_rounding(reduction: str) -> None:
    model, images, loss = problem(torch.float64, reduction)
    found = back_matching(model, images, loss).gradients
    wanted = literal(copy.deepcopy(model), images, loss)
    for param, gradient in zip(model.parameters(), wanted, strict=True):
        if param.dim() > 1:  # of a bias in front of batch normalization only rounding is left
            assert relative(found[param], gradient) < 1e-12


def test_the_old_weights_make_the_target_of_the_block_below() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
    inputs = torch.randn(4, 6, dtype=torch.float64)

    def loss(output: Tensor) -> Tensor:
        return output.square().sum() / 2

    found = back_matching(model, inputs, loss).gradients[model[0].weight]
    assert relative(found, literal(copy.deepcopy(model), inputs, loss)[0]) < 1e-12
    assert relative(found, literal(copy.deepcopy(model), inputs, loss, by_new_weights=True)[0]) > 0.3


def test_integers_have_no_displacement() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    tokens = torch.randint(0, 9, (5, 3))
    wanted = backward(model, tokens, lambda output: output.square().sum())
    found = back_matching(model, tokens, lambda output: output.square().sum())
    assert all(torch.equal(found.gradients[param], wanted[param]) for param in model.parameters())
    assert found.displacements[0] is None and math.isnan(found.remaining[0])
    assert [None if signal is None else signal.shape for signal in found.displacements[1:]] == [
        (5, 3, 4),
        (5, 12),
        (5, 2),
    ]
    assert found.remaining[1] == 0  # a permutation matches everything


def test_attention() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 2))
    inputs = torch.randn(3, 5, 8)
    with sdpa_kernel([SDPBackend.MATH]):
        wanted = backward(model, inputs, torch.sum)
    found = back_matching(model, inputs, torch.sum).gradients
    assert all(torch.equal(found[param], wanted[param]) for param in model.parameters())


def test_what_is_frozen_or_unused_has_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    model[2].unused = nn.Parameter(torch.ones(3))
    found = back_matching(model, torch.randn(3, 4), torch.sum)
    assert set(found.gradients) == {*model[0].parameters(), model[2].weight, model[2].bias}


class Constant(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.ones_like(inputs)


def test_a_block_that_does_not_depend_on_its_input_stops_the_signal() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Constant(), nn.Linear(4, 2))
    found = back_matching(model, torch.randn(3, 4), torch.sum)
    assert found.displacements[1] is not None and not found.displacements[1].any()
    assert found.remaining[1] == 1 and math.isnan(found.remaining[0])
    assert not found.gradients[model[0].weight].any() and found.gradients[model[2].weight].any()


def test_no_trace_is_left_in_gradients_and_flags() -> None:
    model, images, loss = problem()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    with torch.no_grad():
        back_matching(model, images, loss)
    assert all(bool((param.grad == 1).all()) and param.requires_grad for param in model.parameters())
    assert not images.requires_grad


@pytest.fixture
def block_loss() -> BlockLoss:
    """Of the middle block of three, whose Jacobian has singular values below √2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Sequential(nn.Linear(7, 9), nn.Tanh()), nn.Linear(9, 2)).double()
    seen: list[BlockLoss] = []

    def solver(loss: BlockLoss) -> Tensor:
        seen.append(loss)
        return loss.step

    back_matching(model, torch.randn(3, 5, dtype=torch.float64), lambda output: output.square().sum(), solver=solver)
    assert [loss.index for loss in seen] == [2, 1, 0] and seen[1].block is model[1]
    return seen[1]


def test_solvers(block_loss: BlockLoss) -> None:
    jacobian = dense_jacobian(block_loss.block, block_loss.jacobian.point)
    wanted = block_loss.displacement.flatten()
    gram = jacobian.T @ jacobian
    assert relative(one_step(block_loss).flatten(), jacobian.T @ wanted) < 1e-14
    assert torch.equal(gradient_steps(1)(block_loss), one_step(block_loss))
    three = torch.zeros_like(wanted[:21])
    for _ in range(3):
        three = three + jacobian.T @ (wanted - jacobian @ three)
    assert relative(gradient_steps(3)(block_loss).flatten(), three) < 1e-13
    shortest = torch.linalg.pinv(jacobian) @ wanted
    assert relative(exact()(block_loss).flatten(), shortest) < 1e-10
    damped = torch.linalg.solve(gram + 0.3 * torch.eye(21, dtype=torch.float64), jacobian.T @ wanted)
    assert relative(exact(0.3)(block_loss).flatten(), damped) < 1e-10
    assert relative(exact(0.3, iterations=1)(block_loss).flatten(), damped) > 1e-3


def test_what_a_solver_leaves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    inputs = torch.randn(5, 6, dtype=torch.float64)
    one, best = (
        back_matching(model, inputs, lambda output: output.square().sum(), solver=solver)
        for solver in (one_step, exact())
    )
    assert re.fullmatch(r"BackMatching\(loss=[\d.]+, remaining=\([\d.e-]+, [\d.e-]+, [\d.e-]+\)\)", repr(one))
    signals = [inputs, model[0](inputs), model[:2](inputs)]
    for found in (one, best):
        for index, block in enumerate(model):
            jacobian = dense_jacobian(block, signals[index])
            lower, upper = (signal.flatten() for signal in found.displacements[index : index + 2])
            left = (upper - jacobian @ lower).square().sum() / upper.square().sum()
            assert found.remaining[index] == pytest.approx(float(left), rel=1e-12, abs=1e-24)
    assert max(best.remaining) < 1e-20 and min(one.remaining) > 1e-3


def test_a_solver_can_tell_blocks_apart() -> None:
    model, images, loss = problem(torch.float64)
    plain = back_matching(model, images, loss)
    solve = exact(1e-2)
    mixed = back_matching(model, images, loss, solver=lambda one: solve(one) if one.index == 3 else one_step(one))
    assert mixed.remaining[4:] == plain.remaining[4:] and mixed.remaining[3] < plain.remaining[3]
    assert torch.equal(mixed.gradients[model[3][0].weight], plain.gradients[model[3][0].weight])
    assert not torch.equal(mixed.gradients[model[0].weight], plain.gradients[model[0].weight])


def test_chain() -> None:
    relu = nn.ReLU()
    inner = nn.Sequential(nn.Linear(2, 2), relu)
    model = nn.Sequential(inner, nn.ModuleList(), relu, nn.Sequential())
    assert chain(model) == [("0.0", inner[0]), ("0.1", relu), ("1", model[1]), ("2", relu)]
    for other in (nn.Linear(2, 2), nn.ModuleList([relu])):
        with pytest.raises(ValueError, match=rf"model: got {type(other).__name__}, want an nn.Sequential"):
            chain(other)


def squares(output: Tensor) -> Tensor:
    return output.square().sum()


class Backward(nn.Sequential):
    """Calls its children in another order."""

    def forward(self, inputs: Tensor) -> Tensor:
        for child in reversed(self):
            inputs = child(inputs)
        return inputs


class Rounded(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.round().long()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: back_matching([nn.Identity(), Rounded()], torch.ones(2), squares),
            TypeError,
            r"block 1, Rounded: got torch.int64",
        ),
        (lambda: back_matching([], torch.ones(2), squares), ValueError, "blocks: got none, want at least one module"),
        (lambda: back_matching("relu", torch.ones(2), squares), TypeError, "blocks: got a str, want modules"),
        (
            lambda: back_matching([nn.Identity()], torch.ones(2), lambda output: output),
            ValueError,
            r"loss: got \(2,\), want",
        ),
        (lambda: back_matching([nn.Identity()], torch.ones(2), lambda _: 1.0), ValueError, "loss: got float, want"),  # type: ignore[return-value]
        (lambda: back_matching([nn.Identity()], [1.0], squares), TypeError, "inputs: got a list, want a tensor"),
        (
            lambda: back_matching([nn.Identity()], torch.ones(2), squares, solver=lambda loss: torch.ones(3)),
            ValueError,
            r"solver: got a displacement of \(3,\), want \(2,\)",
        ),
        (
            lambda: back_matching(Backward(nn.Identity()), torch.ones(2), squares),
            ValueError,
            "blocks: got Backward, want an nn.Sequential or a list of its blocks",
        ),
        (
            lambda: back_matching([nn.Identity()], torch.ones(2), squares, solver=exact),
            TypeError,
            r"solver: got exact, want what it returns: solver=exact\(\.\.\.\)",
        ),
        (
            lambda: back_matching([nn.Identity()], torch.ones(2), squares, solver=lambda loss: 0),  # type: ignore[return-value]
            TypeError,
            r"solver: got a int, want a tensor of \(2,\)",
        ),
        (lambda: back_matching([nn.Identity()], torch.ones(0), squares), ValueError, "inputs: got an empty tensor"),
        (lambda: gradient_steps(1.5), ValueError, "count: got 1.5, want a positive integer"),
        (lambda: gradient_steps(0), ValueError, "count: got 0, want a positive integer"),
        (lambda: exact(-1.0), ValueError, "damping: got -1.0, want"),
        (lambda: exact(math.nan), ValueError, "damping: got nan, want"),
        (lambda: exact(iterations=0), ValueError, "iterations: got 0, want a positive integer"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
