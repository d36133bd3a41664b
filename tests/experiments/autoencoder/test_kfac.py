"""KFAC: factors, steps, the quadratic model and its damping against dense matrices in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from experiments.autoencoder.kfac import DECAY, KFAC, SHRINK, Factors, adapted, estimate_factors, gradient_of
from experiments.autoencoder.presets import loss_of, make_autoencoder

# torch scripts a function when it first needs derivatives forward.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
WIDTHS = (5, 4, 5)


@pytest.fixture
def model() -> nn.Sequential:
    return make_autoencoder(WIDTHS, seed=0).double()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, WIDTHS[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layers_of(model: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in model if isinstance(layer, nn.Linear)]


def expected_factors(model: nn.Sequential, images: Tensor) -> dict[nn.Linear, Factors]:
    """Returns the mean over noises whose outer products have the mean I, so that nothing is left to chance."""
    size = images.shape[1]
    draws = [
        estimate_factors(model, images, row.expand_as(images))
        for row in math.sqrt(size) * torch.eye(size, dtype=images.dtype)
    ]
    return {
        layer: Factors(draws[0][layer].a, torch.stack([draw[layer].g for draw in draws]).mean(0))
        for layer in layers_of(model)
    }


def dense_fisher(model: nn.Sequential, images: Tensor) -> Tensor:
    """Returns 2 JᵀJ in the mean over the images, parameters in the order of the model."""

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        result: Tensor = functional_call(model, parameters, images)
        return result

    jacobians = jacrev(outputs)({name: parameter.detach() for name, parameter in model.named_parameters()})
    rows = torch.cat([jacobian.flatten(2) for jacobian in jacobians.values()], dim=2)
    return 2 * torch.einsum("nof,nog->fg", rows, rows) / len(images)


def backward(model: nn.Sequential, images: Tensor) -> None:
    model.zero_grad()
    loss_of(model(images), images).backward()


def test_a_single_image_has_its_fisher_matrix_as_the_product_of_its_factors(
    model: nn.Sequential, images: Tensor
) -> None:
    fisher = dense_fisher(model, images[:1])
    start = 0
    for layer, factors in expected_factors(model, images[:1]).items():
        weights = layer.weight.numel()
        product = torch.kron(factors.g, factors.a[:-1, :-1])
        torch.testing.assert_close(product, fisher[start : start + weights, start : start + weights])
        start += weights
        biases = layer.bias.numel()
        torch.testing.assert_close(factors.g, fisher[start : start + biases, start : start + biases])
        start += biases


def test_a_step_is_the_gradient_times_the_inverse_of_the_damped_product(model: nn.Sequential, images: Tensor) -> None:
    optimizer = KFAC(model, lr=0.5, momentum=0.0, every=1, damping=0.3, seed=3)
    backward(model, images)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for index, (layer, factors) in enumerate(estimate_factors(model, images, noise).items()):
        ratio = (factors.a.trace() / len(factors.a)) / (factors.g.trace() / len(factors.g))
        a = factors.a + (0.3 * ratio).sqrt() * torch.eye(len(factors.a), dtype=torch.float64)
        g = factors.g + (0.3 / ratio).sqrt() * torch.eye(len(factors.g), dtype=torch.float64)
        flat = torch.linalg.solve(torch.kron(g, a), gradient_of(layer).flatten())
        step = flat.reshape(len(g), len(a))
        before[2 * index] -= 0.5 * step[:, :-1]
        before[2 * index + 1] -= 0.5 * step[:, -1]
    optimizer.step()
    for parameter, wanted in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted)


def test_the_quadratic_model_is_that_of_the_dense_fisher_matrix(model: nn.Sequential, images: Tensor) -> None:
    optimizer = KFAC(model, lr=0.5, momentum=0.0, every=1, damping=0.3, seed=0)
    backward(model, images)
    generator = torch.Generator().manual_seed(2)
    change = {
        layer: torch.randn(gradient_of(layer).shape, generator=generator, dtype=torch.float64)
        for layer in layers_of(model)
    }
    step = torch.cat([torch.cat([of[:, :-1].flatten(), of[:, -1]]) for of in change.values()])
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    curvature = dense_fisher(model, images) + 0.3 * torch.eye(len(step), dtype=torch.float64)
    wanted = gradient @ step + step @ curvature @ step / 2
    loss, predicted = optimizer._predict(change)
    assert predicted == pytest.approx(float(wanted), rel=1e-10)
    assert loss == pytest.approx(loss_of(model(images), images).item())


@pytest.mark.parametrize(
    ("change", "factor"), [(-0.76, SHRINK), (-0.75, 1.0), (-0.25, 1.0), (-0.24, 1 / SHRINK), (0.5, 1 / SHRINK)]
)
def test_damping_falls_above_three_quarters_of_the_predicted_fall_and_grows_below_one(
    change: float, factor: float
) -> None:
    assert adapted(2.0, -4.0, 4 * change) == pytest.approx(2 * factor)


@pytest.mark.parametrize("predicted", [0.0, 1.0, math.nan])
def test_damping_grows_where_no_fall_was_predicted(predicted: float) -> None:
    assert adapted(2.0, predicted, -1.0) == pytest.approx(2 / SHRINK)


@pytest.mark.parametrize(("lr", "factor"), [(1e-3, SHRINK), (1e3, 1 / SHRINK)])
def test_damping_falls_where_the_model_predicts_the_loss_and_grows_where_it_does_not(
    lr: float, factor: float, model: nn.Sequential, images: Tensor
) -> None:
    optimizer = KFAC(model, lr, momentum=0.0, every=20, damping=1.0, seed=0)
    for _ in range(10):
        assert optimizer.damping in (pytest.approx(1.0), pytest.approx(factor))
        backward(model, images)
        optimizer.step()
    assert optimizer.damping == pytest.approx(factor**2)


def test_momentum_adds_up_preconditioned_gradients(model: nn.Sequential, images: Tensor) -> None:
    optimizer = KFAC(model, lr=0.1, momentum=0.9, every=20, damping=1.0, seed=0)
    (first, *_) = layers_of(model)
    changes = []
    for _ in range(2):
        backward(model, images)
        before = first.weight.detach().clone()
        optimizer.step()
        of_inputs, of_outputs = optimizer._inverses[first]
        direction = (of_outputs @ gradient_of(first) @ of_inputs)[:, :-1]
        changes.append((first.weight.detach() - before, -0.1 * direction))
    torch.testing.assert_close(changes[0][0], changes[0][1])
    torch.testing.assert_close(changes[1][0], changes[1][1] + 0.9 * changes[0][0])


def test_factors_are_averaged_from_estimate_to_estimate_and_inverted_with_the_damping_of_then(
    model: nn.Sequential, images: Tensor
) -> None:
    optimizer = KFAC(model, lr=0.1, momentum=0.0, every=2, damping=1.0, seed=3)
    generator = torch.Generator().manual_seed(3)
    (first, *_) = layers_of(model)
    wanted = None
    for step in range(80):
        backward(model, images)
        if step % 2 == 0:
            noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)
            newest = estimate_factors(model, images, noise)[first]
            share = max(1 / (1 + step // 2), 1 - DECAY**2)
            wanted = newest.g if wanted is None else (1 - share) * wanted + share * newest.g
            damping = optimizer.damping
        optimizer.step()
        torch.testing.assert_close(optimizer._factors[first].g, wanted)
        torch.testing.assert_close(optimizer._inverses[first], optimizer._factors[first].inverses(damping))
    assert damping != 1.0


def test_a_network_whose_outputs_are_saturated_stops_nothing(images: Tensor) -> None:
    model = make_autoencoder(WIDTHS, seed=0)
    last = layers_of(model)[-1]
    nn.init.constant_(last.bias, 200.0)
    optimizer = KFAC(model, lr=0.1, momentum=0.0, every=20, damping=1.0, seed=0)
    for _ in range(5):
        backward(model, images.float())
        assert not gradient_of(last).any()
        optimizer.step()
    assert optimizer.damping == pytest.approx(1 / SHRINK)


def test_a_closure_is_refused(model: nn.Sequential) -> None:
    with pytest.raises(ValueError, match="closure: got one, want None"):
        KFAC(model, lr=0.1, momentum=0.0, every=1, damping=1.0, seed=0).step(lambda: 0.0)


def test_what_cannot_be_factored_makes_the_run_diverge() -> None:
    factors = Factors(torch.full((2, 2), math.inf), torch.eye(2))
    assert factors.inverses(1.0)[0].isnan().all()


@pytest.mark.nightly
def test_curvlinops_has_the_same_curvature(model: nn.Sequential, images: Tensor) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    operator = curvlinops.KFACLinearOperator(
        model,
        nn.MSELoss(reduction="sum"),
        list(model.parameters()),
        [(images, images)],
        fisher_type=curvlinops.FisherType.TYPE2,
        separate_weight_and_bias=False,
    )
    theirs = operator @ torch.eye(operator.shape[1], dtype=torch.float64) / len(images)  # the mean over the batch
    start = 0
    for layer, factors in expected_factors(model, images).items():
        outputs, inputs = layer.weight.shape
        size = outputs * (inputs + 1)
        ours = torch.kron(factors.g, factors.a)
        places = torch.arange(size).reshape(outputs, inputs + 1)
        order = torch.cat([places[:, :-1].flatten(), places[:, -1]])  # weights first, and then biases
        torch.testing.assert_close(theirs[start : start + size, start : start + size], ours[order][:, order])
        start += size
