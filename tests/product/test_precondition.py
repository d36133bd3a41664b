"""Preconditioned gradients are those of the formula, and each method that docs/links.md names is a case of it.

All in float64. A bar is at most ten times the relative error that was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sasgd_fused.precondition import CovariancePreconditioner
from tests.helpers import randn

pytestmark = pytest.mark.usefixtures("default_device")

DAMPINGS = [0.0, 1e-3, 0.1, 10.0]


def close(actual: Tensor, expected: Tensor, bar: float) -> bool:
    return float((actual - expected).norm() / expected.norm()) <= bar


def linear(inputs: int = 7, outputs: int = 5, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return randn(shape, torch.Generator().manual_seed(seed), torch.float64)


def loss_of(outputs: Tensor) -> Tensor:
    """The mean over the examples, in which no output is like another."""
    weights = torch.linspace(0.5, 1.5, outputs[0].numel(), dtype=outputs.dtype).view_as(outputs[0])
    return (outputs * weights).tanh().flatten(1).square().sum(1).mean() + outputs.mean()


def gradients(module: nn.Module) -> list[Tensor]:
    return [param.grad.clone() for param in module.parameters()]


def side_by_side(layer: Any) -> Tensor:
    """The gradient of (W, b)."""
    return torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)


def literal(inputs: Tensor, gradients: Sequence[Tensor], damping: float, alpha: float = 1.0) -> list[Tensor]:
    """The gradient times the inverse of alpha A + damping I, with A built and inverted."""
    weight, *bias = gradients
    whole = torch.cat([weight.flatten(1), *(grad[:, None] for grad in bias)], 1)
    ones = inputs.new_ones(len(inputs), len(bias))
    moments = torch.cat([inputs, ones], 1).mT @ torch.cat([inputs, ones], 1) / len(inputs)
    whole = whole @ torch.linalg.inv(alpha * moments + damping * torch.eye(len(moments), dtype=whole.dtype))
    return [whole[:, : inputs.shape[1]].view_as(weight), *([whole[:, -1]] if bias else [])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("damping", DAMPINGS)
def test_a_damped_step_is_the_gradient_times_the_inverse_of_the_whole_matrix(damping: float, bias: bool) -> None:
    layer, inputs = linear(bias=bias), normal(40, 7) + 1.5
    preconditioner = CovariancePreconditioner(layer, damping=damping, alpha=0.3)
    loss_of(layer(inputs)).backward()
    before = gradients(layer)
    preconditioner.step()
    for actual, expected in zip(gradients(layer), literal(inputs, before, damping, 0.3), strict=True):
        assert close(actual, expected, 3e-14)


def patches_of(convolution: Any, inputs: Tensor) -> Tensor:
    """What each group of a convolution multiplies by its weight: the outputs for weights of a single one."""
    elements = convolution.weight[0].numel()
    single = torch.eye(elements, dtype=inputs.dtype).view(elements, *convolution.weight.shape[1:])
    weight = single.repeat(convolution.groups, *[1] * (single.dim() - 1))
    outputs: Tensor = convolution._conv_forward(inputs, weight, None).flatten(2)
    return outputs.view(len(inputs), convolution.groups, elements, -1).permute(1, 0, 3, 2).flatten(1, 2)


CONVOLUTIONS: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (nn.Conv1d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nn.Conv1d, {"kernel_size": 2, "bias": False}),
    (nn.Conv2d, {"kernel_size": (3, 2), "padding": (2, 1), "dilation": (1, 2)}),
    (nn.Conv2d, {"kernel_size": (4, 3), "padding": "same", "groups": 2, "padding_mode": "reflect"}),
    (nn.Conv2d, {"kernel_size": (5, 3), "padding": "same", "dilation": 2}),
    (nn.Conv2d, {"kernel_size": 3, "stride": (1, 2), "padding": 1, "padding_mode": "replicate", "bias": False}),
    (nn.Conv2d, {"kernel_size": 3, "padding": "valid", "groups": 4}),
    (nn.Conv3d, {"kernel_size": 2, "padding": 1, "padding_mode": "circular", "groups": 2}),
]


@pytest.mark.parametrize("inverse", [True, False], ids=["inverse", "centred"])
@pytest.mark.parametrize(("kind", "options"), CONVOLUTIONS)
def test_a_convolution_is_a_linear_layer_on_its_patches(
    kind: Any, options: dict[str, Any], inverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each group for itself; however many examples are laid out at a time."""
    if not inverse and not options.get("bias", True):
        return  # refused
    monkeypatch.setattr("sasgd_fused.input_moments._PATCH_ELEMENTS", 2 * 4 * 6 * 7 * 9)
    torch.manual_seed(0)
    convolution = kind(4, 8, **options, dtype=torch.float64)
    inputs = normal(5, 4, *(6, 7, 3)[: convolution.weight.dim() - 2]) + 1
    preconditioner = CovariancePreconditioner(convolution, damping=0.1, inverse=inverse)
    loss_of(convolution(inputs)).backward()
    before = gradients(convolution)
    preconditioner.step()
    after = gradients(convolution)
    for group, patches in enumerate(patches_of(convolution, inputs)):
        rows = slice(group * 8 // convolution.groups, (group + 1) * 8 // convolution.groups)
        of_group = [grad[rows] for grad in before]
        expected = literal(patches, of_group, 0.1) if inverse else centred(patches.mean(0), *of_group)
        for actual, wanted in zip(after, expected, strict=True):
            assert close(actual[rows], wanted, 1e-13)


def centred(mean: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    rows = weight.flatten(1) - torch.outer(bias, mean)
    return [rows.view_as(weight), bias - rows @ mean]


def test_kfac_with_a_multiple_of_the_identity_for_its_output_factor_is_the_same() -> None:
    alpha, inputs, layer = 0.3, normal(40, 7) + 1.5, linear()
    preconditioner = CovariancePreconditioner(layer, damping=0, alpha=alpha)
    loss_of(layer(inputs)).backward()
    homogeneous = torch.cat([inputs, inputs.new_ones(40, 1)], 1)
    input_factor = homogeneous.mT @ homogeneous / 40
    output_factor = alpha * torch.eye(5, dtype=torch.float64)
    gradient = side_by_side(layer)
    curvature = torch.kron(output_factor, input_factor)  # of the rows of (W, b) one after the other
    expected = torch.linalg.solve(curvature, gradient.flatten()).view_as(gradient)
    preconditioner.step()
    assert close(side_by_side(layer), expected, 1.5e-14)


def descend(layer: nn.Linear, inputs: Tensor, steps: int, momentum: float, **options: Any) -> tuple[Tensor, Tensor]:
    """The weight and the bias after steps with preconditioned gradients, or with plain ones without options."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=momentum)
    preconditioner = CovariancePreconditioner(layer, damping=0, **options) if options else None
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(layer(inputs)).backward()
        if preconditioner:
            preconditioner.step()
        optimizer.step()
    return layer.weight.detach(), layer.bias.detach()


def reparametrized(inputs: Tensor, mean: Tensor, whitening: Tensor, steps: int, momentum: float) -> list[Tensor]:
    """Plain descent on V and d in a = V U (h - mean) + d, with U and the mean fixed; returns W and b."""
    layer = linear(inputs.shape[1])
    with torch.no_grad():
        layer.bias.add_(layer.weight @ mean)
        layer.weight.copy_(layer.weight @ torch.linalg.inv(whitening))
    weight, bias = descend(layer, (inputs - mean) @ whitening.mT, steps, momentum)
    weight = weight @ whitening
    return [weight, bias - weight @ mean]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_natural_neural_networks_take_the_same_steps(momentum: float) -> None:
    """As long as they do not estimate anew."""
    inputs = normal(40, 7) @ normal(7, 7, seed=2) + 1.5
    values, vectors = torch.linalg.eigh(torch.cov(inputs.mT, correction=0))
    whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.mT
    expected = reparametrized(inputs, inputs.mean(0), whitening, 20, momentum)
    for a, e in zip(descend(linear(), inputs, 20, momentum, every=20), expected, strict=True):
        assert close(a, e, 7e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_centring_is_mean_only_normalization_of_the_input(momentum: float) -> None:
    inputs = normal(40, 7) + 1.5
    expected = reparametrized(inputs, inputs.mean(0), torch.eye(7, dtype=torch.float64), 20, momentum)
    for a, e in zip(descend(linear(), inputs, 20, momentum, inverse=False), expected, strict=True):
        assert close(a, e, 1.5e-14)


def test_a_diagonal_covariance_is_batch_normalization_of_the_input() -> None:
    """With fixed statistics."""
    deviations = torch.linspace(0.5, 3, 7, dtype=torch.float64)
    columns = normal(40, 7)
    inputs = torch.linalg.qr(columns - columns.mean(0))[0] * 40**0.5 * deviations + 1.5
    mean, variance = inputs.mean(0), inputs.var(0, correction=0)
    normalization = nn.BatchNorm1d(7, eps=0, affine=False, dtype=torch.float64).eval()
    normalization.running_mean, normalization.running_var = mean, variance
    layer = linear()
    with torch.no_grad():
        layer.bias.add_(layer.weight @ mean)
        layer.weight *= variance.sqrt()
    weight, bias = descend(layer, normalization(inputs), 1, 0.0)
    weight = weight / variance.sqrt()
    for a, e in zip(descend(linear(), inputs, 1, 0.0, every=1), (weight, bias - weight @ mean), strict=True):
        assert close(a, e, 4e-15)


def test_centring_changes_nothing_before_batch_normalization() -> None:
    """Which takes out the mean of the outputs' gradients; a layer without it is changed."""
    model = nn.Sequential(linear(), nn.BatchNorm1d(5, dtype=torch.float64), nn.ReLU(), linear(5, 3))
    preconditioner = CovariancePreconditioner(model, inverse=False)
    loss_of(model(normal(40, 7) + 1.5)).backward()
    before = [layer.weight.grad.clone() for layer in (model[0], model[3])]
    preconditioner.step()
    assert close(model[0].weight.grad, before[0], 1e-14)
    assert not close(model[3].weight.grad, before[1], 0.1)


@pytest.mark.parametrize(("length", "least"), [(0.3, 0.74), (1.0, 0.38), (3.0, 0.09)])
def test_centring_with_the_correction_of_the_bias_descends_and_without_it_need_not(length: float, least: float) -> None:
    """The matrix by which one row of (W, b).grad is multiplied, from what becomes of the rows of an identity."""
    mean = torch.tensor([2.0, 1.0, -2.0], dtype=torch.float64) * length / 3
    layer = linear(3, 4)
    preconditioner = CovariancePreconditioner(layer, inverse=False)
    layer(mean.expand(6, 3)).sum().backward()
    identity = torch.eye(4, dtype=torch.float64)
    layer.weight.grad, layer.bias.grad = identity[:, :3].clone(), identity[:, 3].clone()
    preconditioner.step()
    matrix = side_by_side(layer)
    printed = torch.cat([matrix[:, :3], identity[:, 3:]], 1)  # Algorithm 2 leaves b.grad as it is
    assert float(torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[0]) == pytest.approx(least, abs=0.005)
    assert float(torch.linalg.eigvalsh((printed + printed.mT) / 2)[0]) == pytest.approx(1 - length / 2, abs=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_alpha_max_is_the_largest_squared_gradient_of_an_example(reduction: Any) -> None:
    """Whatever the loss is multiplied by, if that is said."""
    inputs, layer, scale = normal(40, 7) + 1.5, linear(), 8.0
    preconditioner = CovariancePreconditioner(layer, alpha="max", damping=0.1, loss_reduction=reduction)
    losses = layer(inputs).sin().square().sum(1)
    outputs = layer(inputs).detach().requires_grad_()
    outputs.sin().square().sum().backward()
    (getattr(losses, reduction)() * scale).backward()
    for param in layer.parameters():
        param.grad.div_(scale)
    before = gradients(layer)
    preconditioner.step(loss_scale=scale)
    alpha = float(outputs.grad.square().max())
    for actual, expected in zip(gradients(layer), literal(inputs, before, 0.1, alpha), strict=True):
        assert close(actual, expected, 2.5e-14)


def softmax_gradients() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of a linear classifier: each example's gradient, Jacobians of logits and probabilities, these, and classes."""
    inputs, weight = normal(6, 3), normal(4, 3, seed=2)
    classes = torch.tensor([0, 1, 2, 3, 1, 0])

    def logits(weight: Tensor) -> Tensor:
        return inputs @ weight.mT

    jacobians = [
        torch.func.jacrev(function)(weight).flatten(2)
        for function in (logits, lambda weight: logits(weight).softmax(1))
    ]
    of_losses = torch.func.jacrev(
        lambda weight: nn.functional.cross_entropy(logits(weight), classes, reduction="none")
    )(weight)
    return of_losses.flatten(1), *jacobians, logits(weight).softmax(1), classes


def test_gauss_newton_of_a_cross_entropy_is_the_empirical_or_the_expected_fisher() -> None:
    """By where the loss is split off: at the probabilities or at the logits."""
    of_losses, of_logits, of_probabilities, probabilities, classes = softmax_gradients()
    chosen = nn.functional.one_hot(classes, 4)
    at_probabilities = torch.einsum(
        "nkp,nk,nkq->pq", of_probabilities, chosen / probabilities.square(), of_probabilities
    ) / len(classes)
    empirical = of_losses.mT @ of_losses / len(classes)
    hessian = torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)
    at_logits = torch.einsum("nkp,nkl,nlq->pq", of_logits, hessian, of_logits) / len(classes)
    of_each_class = of_probabilities / probabilities.unsqueeze(2)  # minus the gradient, were it that class
    expected = torch.einsum("nkp,nk,nkq->pq", of_each_class, probabilities, of_each_class) / len(classes)
    assert close(at_probabilities, empirical, 3e-15)
    assert close(at_logits, expected, 3e-15)
    assert not close(empirical, expected, 0.5)


def test_the_divergence_of_a_small_change_is_half_of_what_the_fisher_matrix_gives() -> None:
    """Its second derivative is the Fisher matrix, here of the logits of one prediction."""
    logits = randn((4,), torch.Generator().manual_seed(0), torch.float64)
    probabilities = logits.softmax(0)
    of_each_class = torch.eye(4, dtype=torch.float64) - probabilities  # minus the gradient, were it that class
    fisher = torch.einsum("kp,k,kq->pq", of_each_class, probabilities, of_each_class)

    def divergence(changed: Tensor) -> Tensor:
        return (probabilities * (probabilities.log() - changed.log_softmax(0))).sum()

    assert close(torch.autograd.functional.hessian(divergence, logits), fisher, 1.5e-15)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_rmsprops_mean_square_is_diagonal_gauss_newton_over_the_batch_and_the_squared_gradient(batch: int) -> None:
    """Of a cross entropy, in the mean over all batches: (diagonal + (n - 1) gradient²) / n."""
    of_losses = softmax_gradients()[0]
    batches = torch.cartesian_prod(*[torch.arange(len(of_losses))] * batch).view(-1, batch)
    total = torch.zeros(of_losses.shape[1], dtype=torch.float64)
    for indices in batches:
        param = nn.Parameter(torch.zeros_like(total))
        optimizer = torch.optim.RMSprop([param], lr=0, alpha=0)
        param.grad = of_losses[indices].mean(0)
        optimizer.step()
        total += optimizer.state[param]["square_avg"]
    diagonal, gradient = of_losses.square().mean(0), of_losses.mean(0)
    assert close(total / len(batches), (diagonal + (batch - 1) * gradient.square()) / batch, 8e-15)
