"""The methods that are compared: each optimizer does what its equation says, with the rates and options of its name."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

pytest.importorskip("pytorch_optimizer")

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from sasgd_fused.experiments.checkpoints import Saved
from sasgd_fused.experiments.methods import METHODS, Method
from sasgd_fused.experiments.models import MODELS, initialise
from sasgd_fused.experiments.muon import make_muon
from tests.helpers import cpu_only

pytestmark = [cpu_only("the experiments run there"), pytest.mark.usefixtures("one_thread")]

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")

LR, WEIGHT_DECAY = 0.1, 0.02
OPTIONS: dict[str, dict[str, Any]] = {
    "plain-head": {"head": "plain"},
    "frozen-norms": {"norms": "freeze"},
    "shape-decay": {"decay": "shape"},
    "product": {"factors": "product"},
}
AMENDED = ["paper", "recommended", *(name for name in METHODS if "+" in name)]


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5, bias=False),  # of four pixels: where widths match, factors "product" change nothing
    )
    initialise(model, 0)
    return model.double()


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for weight in model.parameters()]


def give_gradients(model: nn.Module, step: int) -> None:
    for weight, gradient in zip(model.parameters(), gradients(model, step), strict=True):
        weight.grad = gradient


def take_steps(model: nn.Module, optimizer: Optimizer, steps: Iterable[int] = range(2)) -> None:
    for step in steps:
        optimizer.zero_grad()
        give_gradients(model, step)
        optimizer.step()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def stepped(name: str) -> list[Tensor]:
    model = network()
    take_steps(model, METHODS[name].build(model, LR, WEIGHT_DECAY, "foreach"))
    return weights_of(model)


def test_a_tuned_method_builds_with_its_rates() -> None:
    calls: list[tuple[Any, ...]] = []

    def build(*arguments: Any) -> Optimizer:
        calls.append(arguments)
        return torch.optim.SGD([torch.zeros(1)])

    model = network()
    tuned = Method("the label", build).tuned(0.5, 0.25)
    tuned.build(model, "reference")
    assert calls == [(model, 0.5, 0.25, "reference")]
    assert (tuned.label, tuned.lr, tuned.weight_decay) == ("the label", 0.5, 0.25)


def test_every_method_has_a_label_of_its_own() -> None:
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


# Equations


def test_fused_sgd_is_sgd_on_these_networks() -> None:
    # torch's fused step ignores the strides of gradients: they must be the parameters' here.
    model = MODELS["vgg7"](1, 10)
    initialise(model, 0)
    plain_model = copy.deepcopy(model)
    fused = METHODS["sgd"].build(model, 0.1, 5e-3, None)
    plain = torch.optim.SGD(plain_model.parameters(), 0.1, 0.9, weight_decay=5e-3, foreach=False, fused=False)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pairs = list(zip(model.parameters(), plain_model.parameters(), strict=True))
    for _ in range(2):
        fused.zero_grad()
        model(images).square().mean().backward()
        for ours, theirs in pairs:
            assert ours.grad is not None
            theirs.grad = ours.grad.clone()
        fused.step()
        plain.step()
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_lars_takes_its_rate_relative_to_the_norm_of_each_layer() -> None:
    model = network()
    weights = weights_of(model)
    velocities = [torch.zeros_like(weight) for weight in weights]
    for step in range(2):
        for weight, velocity, gradient in zip(weights, velocities, gradients(model, step), strict=True):
            trust = weight.norm() / (gradient.norm() + WEIGHT_DECAY * weight.norm())
            velocity.mul_(0.9).add_(trust * (gradient + WEIGHT_DECAY * weight))
            weight.sub_(LR * velocity)
    torch.testing.assert_close(stepped("lars"), weights, rtol=1e-12, atol=1e-14)


def test_adamw_has_its_usual_constants_and_decays_apart_from_the_gradient() -> None:
    model = network()
    weights = weights_of(model)
    means, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step in range(2):
        for weight, mean, square, gradient in zip(weights, means, squares, gradients(model, step), strict=True):
            mean.mul_(0.9).add_(0.1 * gradient)
            square.mul_(0.999).add_(0.001 * gradient**2)
            corrected = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
            weight.mul_(1 - LR * WEIGHT_DECAY).sub_(LR * corrected[0] / (corrected[1].sqrt() + 1e-8))
    torch.testing.assert_close(stepped("adamw"), weights, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", AMENDED)
def test_an_amended_method_has_the_options_that_its_name_says(name: str) -> None:
    parts = ["plain-head", "frozen-norms", "shape-decay"] if name == "recommended" else name.split("+")[1:]
    options = {key: value for part in parts for key, value in OPTIONS[part].items()}
    model = network()
    groups = parameter_groups(model)
    take_steps(model, ScaleAmendedSGD(groups, LR, 0.9, weight_decay=WEIGHT_DECAY, backend="foreach", **options))
    assert all(map(torch.equal, stepped(name), weights_of(model)))


def test_each_choice_of_options_has_one_name_and_does_something_else() -> None:
    assert len(AMENDED) == 2 ** len(OPTIONS)
    assert "paper+plain-head+frozen-norms+shape-decay" not in METHODS  # it is "recommended"
    results = {tuple(torch.cat([weight.flatten() for weight in stepped(name)]).tolist()) for name in AMENDED}
    assert len(results) == len(AMENDED)


# Muon


def build_muon(model: nn.Module) -> Optimizer:
    return METHODS["muon"].build(model, LR, WEIGHT_DECAY, None)


@needs_muon
def test_muon_moves_kernels_as_matrices_and_the_head_by_adamw() -> None:
    model = network()
    *kernels, head = (nn.Parameter(weight) for weight in weights_of(model))
    matrices = [nn.Parameter(kernel.detach().flatten(1)) for kernel in kernels]
    muon = torch.optim.Muon(matrices, LR, WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([head], LR, weight_decay=WEIGHT_DECAY)
    for step in range(2):
        *of_kernels, head.grad = gradients(model, step)
        for matrix, gradient in zip(matrices, of_kernels, strict=True):
            matrix.grad = gradient.flatten(1)
        muon.step()
        adamw.step()
    expected = [*(matrix.view_as(kernel) for matrix, kernel in zip(matrices, kernels, strict=True)), head]
    assert all(map(torch.equal, stepped("muon"), expected))


@needs_muon
def test_muon_leaves_vectors_to_adamw() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    other = copy.deepcopy(model)
    take_steps(model, make_muon(model, LR, WEIGHT_DECAY))
    take_steps(other, torch.optim.AdamW(other.parameters(), LR, weight_decay=WEIGHT_DECAY))
    same = [torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True)]
    assert same == [False, True, True, True, True, True]


@needs_muon
def test_muon_leaves_layers_without_a_gradient_alone() -> None:
    model = network()
    before = weights_of(model)
    optimizer = build_muon(model)
    take_steps(model, optimizer)
    after = weights_of(model)
    assert not any(map(torch.equal, before, after))
    optimizer.zero_grad()
    optimizer.step()
    assert all(map(torch.equal, weights_of(model), after))


@needs_muon
def test_muon_clears_all_gradients() -> None:
    model = network()
    optimizer = build_muon(model)
    give_gradients(model, 0)
    optimizer.step()
    optimizer.zero_grad()
    assert [weight.grad for weight in model.parameters()] == [None] * 3


@needs_muon
@pytest.mark.parametrize("loads", [False, True])
def test_a_schedule_sets_the_rate_of_all_layers_of_muon(loads: bool) -> None:
    model = network()
    optimizer = build_muon(model)
    schedule = LambdaLR(optimizer, lambda step: float(step < 1))
    take_steps(model, optimizer, [0])
    if loads:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedule.step()
    before = weights_of(model)
    take_steps(model, optimizer, [1])
    assert all(map(torch.equal, weights_of(model), before))


@needs_muon
def test_muon_goes_on_from_a_file_to_the_bit(tmp_path: Path) -> None:
    def begin() -> tuple[nn.Module, Optimizer, CosineAnnealingLR]:
        model = network()
        optimizer = build_muon(model)
        return model, optimizer, CosineAnnealingLR(optimizer, 6)

    def take(model: nn.Module, optimizer: Optimizer, schedule: CosineAnnealingLR, steps: range) -> None:
        for step in steps:
            take_steps(model, optimizer, [step])
            schedule.step()

    whole, first, second = begin(), begin(), begin()
    take(*whole, range(6))
    take(*first, range(3))
    torch.save([part.state_dict() for part in first], tmp_path / "parts")
    parts: tuple[Saved, ...] = second
    for part, state in zip(parts, torch.load(tmp_path / "parts", weights_only=True), strict=True):
        part.load_state_dict(state)
    take(*second, range(3, 6))
    assert all(map(torch.equal, weights_of(second[0]), weights_of(whole[0])))
    assert not any(map(torch.equal, weights_of(second[0]), weights_of(first[0])))


@needs_muon
def test_muon_refuses_a_closure() -> None:
    model = network()
    before = weights_of(model)
    give_gradients(model, 0)
    with pytest.raises(ValueError, match="closure: got one, want None"):
        build_muon(model).step(lambda: 0.0)
    assert all(map(torch.equal, weights_of(model), before))
