"""Gradients released in backward: the same training to the bit, without all gradients in memory at once."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, FAST_BACKENDS, backends, cpu_only, randn

TRACK = {"lr": 0.01, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}
RULES: dict[str, dict[str, Any]] = {
    "track": TRACK,
    "freeze": {**TRACK, "norms": "freeze", "head": "plain", "decay": "shape"},
    "product": {"lr": 1e-3, "factors": "product"},
    "relative": {**TRACK, "scale": "relative"},
}


def network(layers: int = 3, width: int = 7) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)), nn.Linear(width, 3)).to(DEVICE)


def loss_of(model: nn.Module, step: int) -> Tensor:
    outputs: Tensor = model(randn((4, 7), torch.Generator().manual_seed(step)))
    return outputs.square().mean()


def train(model: nn.Module, optimizer: ScaleAmendedSGD, steps: range, released: bool) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        assert all((param.grad is None) == released for param in model.parameters())
        optimizer.step()


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_training_is_the_same_to_the_bit(rule: dict[str, Any], backend: str) -> None:
    """Weights, checkpoints and reports; also when it begins and ends in the middle."""
    ended = []
    for released in (range(0), range(6), range(2, 4)):
        model = network()
        optimizer = ScaleAmendedSGD(parameter_groups(model), backend=backend, **rule)
        for step in range(6):
            if step in released:
                handle = optimizer.release_gradients_in_backward()
            elif released and step == released.stop:
                handle.remove()
            train(model, optimizer, range(step, step + 1), step in released)
        ended.append((model, optimizer.state_dict(), optimizer.layer_report()))
    (model, state, report), *others = ended
    for other, other_state, other_report in others:
        assert all(map(torch.equal, model.parameters(), other.parameters()))
        assert state["param_groups"] == other_state["param_groups"]
        assert state["state"].keys() == other_state["state"].keys()
        for ours, theirs in ((of, other_state["state"][index]) for index, of in state["state"].items()):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])) for key in ours)
        assert report == other_report


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(
    "rule", [TRACK, RULES["freeze"], {**TRACK, "master_weights": True}], ids=["", "freeze", "masters"]
)
def test_what_others_write_in_between_is_seen(rule: dict[str, Any], backend: str) -> None:
    """Weights, momentum buffers and frozen norms, whichever parameter is updated first."""
    dtype = torch.bfloat16 if "master_weights" in rule else torch.float32
    models = network().to(dtype), network().to(dtype)
    for model, released in zip(models, (True, False), strict=True):
        optimizer = ScaleAmendedSGD(parameter_groups(model), **rule, backend=backend)
        if released:
            optimizer.release_gradients_in_backward()
        for step in range(4):
            optimizer.zero_grad()
            inputs = randn((4, 7), torch.Generator().manual_seed(step))
            model(inputs.to(dtype)).float().square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                model[step % 3].weight.mul_(1.5)
            state = optimizer.state[model[(step + 1) % 3].weight]
            state["momentum_buffer"] = state["momentum_buffer"] * 0.5
            if rule.get("norms") == "freeze":
                optimizer.state[model[(step + 2) % 3].weight]["row_norm_sq"] = 1.0 + step
        assert not any(row.stale_steps for row in optimizer.layer_report())
    assert all(map(torch.equal, *(model.parameters() for model in models)))


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_empty_parameters_have_buffers_and_may_change(backend: str) -> None:
    weight, empty = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(0, 2))
    optimizer = ScaleAmendedSGD([empty, weight], lr=0.1, momentum=0.9, backend=backend)
    optimizer.release_gradients_in_backward()
    (weight.sum() + empty.sum()).backward()
    empty.data = empty.data.bfloat16()
    (weight.sum() + empty.sum()).backward()
    state = optimizer.state_dict()["state"]
    assert {key: list(entry) for key, entry in state.items()} == {key: ["momentum_buffer"] for key in (0, 1)}


@pytest.mark.parametrize("backend", backends(["native", "foreach"]))
def test_parameters_that_come_later_take_part(backend: str) -> None:
    """Unfrozen ones and new groups; a tied weight is updated once, from the sum of its gradients."""
    models = network(), network()
    for model, released in zip(models, (True, False), strict=True):
        model[2].weight = model[1].weight
        model[0].requires_grad_(False)
        first, *rest = model.children()
        tied = dict.fromkeys(param for module in rest for param in module.parameters())
        optimizer = ScaleAmendedSGD(list(tied), **TRACK, backend=backend)
        if released:
            handle = optimizer.release_gradients_in_backward()
            assert optimizer.release_gradients_in_backward() is handle
        train_on = [p for p in model.parameters() if p.requires_grad]
        loss_of(model, 0).backward()
        assert all((param.grad is None) == released for param in train_on)
        optimizer.step()
        optimizer.zero_grad()
        first.requires_grad_()
        optimizer.add_param_group({"params": list(first.parameters())})
        optimizer.step()
        train(model, optimizer, range(1, 4), released)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize("backend", backends(["native", "foreach"]))
def test_a_scheduler_and_a_checkpoint(backend: str) -> None:
    """The learning rate is that of the moment; loading a checkpoint leaves the release as it was."""
    models = network(), network()
    for model, released in zip(models, (True, False), strict=True):
        optimizer = ScaleAmendedSGD(parameter_groups(model), **TRACK, backend=backend)
        scheduler = ExponentialLR(optimizer, 0.5)
        if released:
            optimizer.release_gradients_in_backward()
        for step in range(4):
            train(model, optimizer, range(step, step + 1), released)
            scheduler.step()
            if step == 1:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def test_a_gradient_that_is_given_by_hand_waits_for_step() -> None:
    model = network()
    optimizer = ScaleAmendedSGD(parameter_groups(model), **TRACK)
    optimizer.release_gradients_in_backward()
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    assert torch.equal(model[0].weight, before)
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


def test_a_wrong_gradient_leaves_the_weight() -> None:
    model = network()
    optimizer = ScaleAmendedSGD(parameter_groups(model), **TRACK)
    optimizer.release_gradients_in_backward()
    before = [param.detach().clone() for param in model.parameters()]
    optimizer.param_groups[0]["lr"] = "high"
    optimizer.param_groups[1]["lr"] = "high"
    with pytest.raises(TypeError, match="lr of parameter group 0: got 'high', want a number"):
        loss_of(model, 0).backward()
    assert all(map(torch.equal, model.parameters(), before))


def test_copies_do_not_release_and_the_dead_do_not_either() -> None:
    model = network()
    optimizer = ScaleAmendedSGD(parameter_groups(model), **TRACK)
    optimizer.release_gradients_in_backward()
    other, copied = copy.deepcopy((model, optimizer))
    loss_of(other, 0).backward()
    assert all(param.grad is not None for param in other.parameters())
    copied.step()
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None
    before = [param.detach().clone() for param in model.parameters()]
    loss_of(model, 0).backward()
    assert all(param.grad is not None for param in model.parameters())
    assert all(map(torch.equal, model.parameters(), before))


def test_released_parameters_are_freed() -> None:
    """Hooks that hold what holds their parameter would keep it for ever: nobody looks for cycles there."""
    model = network()
    optimizer = ScaleAmendedSGD(parameter_groups(model), **TRACK)
    optimizer.release_gradients_in_backward()
    train(model, optimizer, range(2), True)
    kept = weakref.ref(model[0].weight)
    del model, optimizer
    gc.collect()
    assert kept() is None


def test_frozen_parameters_are_taken_up_later_and_layers_stay_in_their_order() -> None:
    model = network()
    model.requires_grad_(False)
    optimizer = ScaleAmendedSGD(list(model[1].parameters()), **TRACK)
    optimizer.release_gradients_in_backward()
    optimizer.add_param_group({"params": list(model[0].parameters())})
    model.requires_grad_(True)
    optimizer.step()
    loss_of(model, 0).backward()
    assert all(param.grad is None for param in (*model[0].parameters(), *model[1].parameters()))
    assert [row.name for row in optimizer.layer_report()] == ["parameter 0 of group 1", "parameter 0 of group 0"]


class Peak:
    """The most memory that was in use, in bytes, as the profiler saw it from the first allocation on."""

    def __enter__(self) -> Peak:
        self._profile = torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU])
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        in_use = self.bytes = 0
        for event in self._profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                in_use += event.nbytes()
                self.bytes = max(self.bytes, in_use)


@cpu_only("the profiler tells of its memory")
@pytest.mark.filterwarnings("ignore")  # the profiler's own
@pytest.mark.parametrize("backend", backends(name for name in FAST_BACKENDS if name == "native"))
def test_the_peak_is_lower_by_the_gradients(backend: str) -> None:
    """By all but the largest layer's, of which there is one at a time."""
    peaks = []
    for released in (False, True):
        model = network(layers=12, width=256)
        optimizer = ScaleAmendedSGD(parameter_groups(model), **TRACK, backend=backend)
        if released:
            optimizer.release_gradients_in_backward()
        data = randn((2, 256))
        for _ in range(2):
            optimizer.zero_grad()
            with Peak() as peak:
                model(data).square().mean().backward()
                optimizer.step()
        peaks.append(peak.bytes)
    sizes = [4 * param.numel() for param in model.parameters()]
    assert peaks[0] - peaks[1] == pytest.approx(sum(sizes) - 4 * 256 * 257, rel=0.05)
    assert peaks[1] < 2.2 * max(sizes)
