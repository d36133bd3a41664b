"""CarriedState norms are those of the weights as they are, whoever wrote them; frozen norms stay."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, FAST_BACKENDS, LOW_PRECISION, Case, assert_close, backends, cpu_only, randn, states_of
from tests.tiers import thin

Write = Callable[[nn.Module], object]


def model_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).to(DEVICE)


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        param.grad = randn(param.shape, generator) * 0.1


def ema_swap(model: nn.Module) -> None:
    """Weights out and averaged weights in, by copies."""
    averaged = [param.detach() * 0.7 for param in model.parameters()]
    with torch.no_grad():
        for param, value in zip(model.parameters(), averaged, strict=True):
            param.copy_(value)


def reinitialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def swap_data(model: nn.Module) -> None:
    """Other memory under the same parameters."""
    for param in model.parameters():
        param.data = param.data * 1.5


def one_layer(model: nn.Module) -> None:
    with torch.no_grad():
        model[2].weight[0] += 1.0


def vector(model: nn.Module) -> None:
    flat = nn.utils.parameters_to_vector(model.parameters()).detach() * 0.9
    nn.utils.vector_to_parameters(flat, model.parameters())


def other_weights(model: nn.Module) -> None:
    model.load_state_dict(model_of(seed=5).state_dict())


SEEN: list[Write] = [other_weights, ema_swap, reinitialise, swap_data, one_layer, vector]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("write", SEEN, ids=lambda write: write.__name__)
def test_writes_that_can_be_seen_are_followed_at_once(backend: str, write: Write) -> None:
    """As if the optimizer had been made after the write."""
    model = model_of()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, backend=backend)
    for step in range(3):
        give_gradients(model, step)
        optimizer.step()
        torch.manual_seed(3)
        write(model)
        fresh = copy.deepcopy(model)
        newcomer = ScaleAmendedSGD(parameter_groups(fresh), lr=0.1, backend=backend)
        assert optimizer.layer_report() == newcomer.layer_report()
        give_gradients(model, 10 + step)
        give_gradients(fresh, 10 + step)
        optimizer.step()
        newcomer.step()
        for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert not any(row.stale_steps for row in optimizer.layer_report())


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_writes_that_no_counter_shows_are_caught_by_the_pass(backend: str) -> None:
    model = model_of()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, backend=backend)
    give_gradients(model, 0)
    optimizer.step()
    model[0].weight.data.mul_(2.0)
    give_gradients(model, 1)
    scale = optimizer.layer_report()[0].layer_scale  # that of the weights before: nobody can know yet
    expected = model[0].weight.detach() - 0.1 * scale * model[0].weight.grad
    with pytest.warns(UserWarning, match="weights of 1 layers were written") as caught:
        optimizer.step()
        first, second = optimizer.layer_report()  # which asks the device, where the step did not
    assert caught[0].filename == __file__
    assert_close(model[0].weight, expected, torch.float32)
    assert (first.stale_steps, second.stale_steps) == (1, 0)
    assert first.marks == ["stale steps: 1"]
    assert first == copy_with_stale_steps(model, 1, backend), "one step later all is right again"

    model[0].weight.data.mul_(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it warns once
        optimizer.step()
        assert optimizer.layer_report()[0].stale_steps == 2


def copy_with_stale_steps(model: nn.Module, stale_steps: int, backend: str) -> object:
    fresh = copy.deepcopy(model)
    (row, _) = ScaleAmendedSGD(parameter_groups(fresh), lr=0.1, backend=backend).layer_report()
    return type(row)(**{**vars(row), "stale_steps": stale_steps})


@pytest.mark.parametrize("backend", backends())
def test_refresh_norms_spares_even_that_step(backend: str) -> None:
    model, optimizer = trained(backend, norms="track")
    model[0].weight.data.clamp_(-0.1, 0.1)
    optimizer.refresh_norms()
    fresh = copy.deepcopy(model)
    newcomer = ScaleAmendedSGD(parameter_groups(fresh), lr=0.1, backend=backend)
    for m, o in ((model, optimizer), (fresh, newcomer)):
        give_gradients(m, 1)
        o.step()
    for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(row.stale_steps for row in optimizer.layer_report())


def trained(backend: str, norms: str, **options: object) -> tuple[nn.Sequential, ScaleAmendedSGD]:
    model = model_of()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, backend=backend, norms=norms, **options)
    give_gradients(model, 0)
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("backend", backends())
def test_frozen_norms_are_those_before_the_first_update(backend: str) -> None:
    model = model_of()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, backend=backend, norms="freeze")
    before = optimizer.layer_report()
    for step in range(3):
        give_gradients(model, step)
        optimizer.step()
        other_weights(model)
    assert optimizer.layer_report() == before
    optimizer.refresh_norms()
    newcomer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, backend=backend, norms="freeze")
    assert optimizer.layer_report() == newcomer.layer_report() != before


@pytest.mark.parametrize("backend", backends())
def test_a_frozen_norm_is_taken_at_the_layers_own_first_update(backend: str) -> None:
    """The second layer gets its first gradient later, when its weights are others."""
    model, optimizer = model_of(), None
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, backend=backend, norms="freeze")
    give_gradients(model, 0)
    model[2].weight.grad = None
    optimizer.step()
    with torch.no_grad():
        model[2].weight.mul_(2.0)
    late = optimizer.layer_report()[1].row_norm_sq
    give_gradients(model, 1)
    optimizer.step()
    with torch.no_grad():
        model[2].weight.mul_(2.0)
    assert optimizer.layer_report()[1].row_norm_sq == late
    weight, _ = states_of(optimizer, model[2].parameters())
    assert weight["row_norm_sq"] == pytest.approx(late)


@pytest.mark.parametrize("backend", backends())
def test_a_frozen_norm_that_somebody_gives_to_another_layer(backend: str) -> None:
    """The first layer has none yet, so that as many are kept as before, and the same numbers."""
    model = model_of()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, backend=backend, norms="freeze")
    first, _, second, _ = model.parameters()
    give_gradients(model, 0)
    first.grad = None
    optimizer.step()
    given = states_of(optimizer, [second])[0]["row_norm_sq"]
    optimizer.state[first]["row_norm_sq"] = optimizer.state[second].pop("row_norm_sq")
    with torch.no_grad():
        second.mul_(2.0)
    expected = float(second.detach().double().square().sum()) / 3
    give_gradients(model, 1)
    optimizer.step()
    norms = [state["row_norm_sq"] for state in states_of(optimizer, [first, second])]
    assert norms == pytest.approx([given, expected])


@pytest.mark.parametrize("backend", backends())
def test_a_step_with_lr_0_freezes_nothing(backend: str) -> None:
    model = model_of()
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.0, momentum=0.9, backend=backend, norms="freeze")
    give_gradients(model, 0)
    optimizer.step()
    norms = [state.get("row_norm_sq", math.nan) for state in states_of(optimizer, model.parameters())]
    assert all(map(math.isnan, norms)), "none, though torch.distributed.checkpoint sees that there will be"
    other_weights(model)
    expected = optimizer.layer_report()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    assert [row.row_norm_sq for row in optimizer.layer_report()] == [row.row_norm_sq for row in expected]
    first, _, second, _ = states_of(optimizer, model.parameters())
    assert [state["row_norm_sq"] for state in (first, second)] == [row.row_norm_sq for row in expected]


@thin(slow=1)
@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every_second", "misaligned"])
def test_carried_norms_and_a_norm_pass_have_the_same_bits(backend: str, dtype: torch.dtype, layout: str) -> None:
    """So a run that resumes, and takes its norms by a pass, continues to the bit."""
    shapes = [(7, 2341), (130, 257), (16384, 1), (1, 33), (9,)]
    case = Case(shapes, dtype, layout, options={"lr": 0.01, "momentum": 0.9, "output_width": 10000})
    params = case.params()
    optimizer = case.optimizer(params, backend)
    for step in range(3):
        case.set_grads(params, step)
        optimizer.step()
        carried = [row.row_norm_sq for row in optimizer.layer_report()]
        optimizer.refresh_norms()
        assert [row.row_norm_sq for row in optimizer.layer_report()] == carried
        exact = [float(p.detach().double().square().sum()) / p.shape[0] for p in params if p.dim() > 1]
        assert carried == pytest.approx(exact, rel=1e-6)


@cpu_only("threads")
@pytest.mark.parametrize("backend", backends(["native"]))
def test_results_do_not_depend_on_the_number_of_threads(backend: str, set_num_threads: Callable[[int], None]) -> None:
    case = Case([(300, 401), (5, 7), (64,), (130, 257)], options={"lr": 1e-5, "momentum": 0.9, "weight_decay": 0.1})
    runs = []
    for count in (1, 2, 3):
        set_num_threads(count)
        runs.append(case.run(backend)[0])
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("backend", backends())
def test_own_writes_bump_the_version_counters(backend: str) -> None:
    """So autograd raises where a saved weight has been changed, instead of giving a wrong gradient."""
    weight = Parameter(torch.ones(2, 2, device=DEVICE))
    optimizer = ScaleAmendedSGD([weight], lr=0.1, backend=backend)
    loss = (weight * weight).sum()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
