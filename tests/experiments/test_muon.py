"""Muon for whole networks: matrices as torch's, all else by AdamW, and one optimizer to schedules and checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from experiments.methods import METHODS
from experiments.muon import make_muon
from tests.experiments.steps import LR, WEIGHT_DECAY, give_gradients, gradients, network, take_steps, weights_of

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def build_muon(model: nn.Module) -> Optimizer:
    return METHODS["muon"].build(model, LR, WEIGHT_DECAY, None)


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
    take_steps(model, build_muon(model))
    assert all(map(torch.equal, weights_of(model), expected))


def test_muon_leaves_vectors_to_adamw() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    other = copy.deepcopy(model)
    take_steps(model, make_muon(model, LR, WEIGHT_DECAY))
    take_steps(other, torch.optim.AdamW(other.parameters(), LR, weight_decay=WEIGHT_DECAY))
    same = [torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True)]
    assert same == [False, True, True, True, True, True]


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


def test_muon_clears_all_gradients() -> None:
    model = network()
    optimizer = build_muon(model)
    give_gradients(model, 0)
    optimizer.step()
    optimizer.zero_grad()
    assert [weight.grad for weight in model.parameters()] == [None] * 3


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
    parts: tuple[Any, ...] = second
    for part, state in zip(parts, torch.load(tmp_path / "parts", weights_only=True), strict=True):
        part.load_state_dict(state)
    take(*second, range(3, 6))
    assert all(map(torch.equal, weights_of(second[0]), weights_of(whole[0])))
    assert not any(map(torch.equal, weights_of(second[0]), weights_of(first[0])))


def test_muon_refuses_a_closure() -> None:
    model = network()
    before = weights_of(model)
    give_gradients(model, 0)
    with pytest.raises(ValueError, match="closure: got one, want None"):
        build_muon(model).step(lambda: 0.0)
    assert all(map(torch.equal, weights_of(model), before))
