"""A step in a CUDA graph: replays are steps, with norms, learning rate and overflows as they are at the replay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, LOW_PRECISION, Case, assert_close, backends, cuda_only, randn, states_of
from tests.kernels.cuda_runs import FREEZE, SHAPES, TRACK, assert_same_bits, fixed_grads, give, gradients
from tests.storage_cases import STORAGE, case_of
from tests.unchanged import bits

pytestmark = cuda_only
on_kernels = pytest.mark.parametrize("backend", backends(["native", "triton"]))
over_rules = pytest.mark.parametrize("rule", [TRACK, FREEZE], ids=["track", "freeze"])


def capture(body: Callable[[], object], stream: torch.cuda.Stream | None = None) -> Callable[[], None]:
    """Takes what the body would do on the device, without doing it; returns what does it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        body()
    return graph.replay


@on_kernels
@over_rules
@pytest.mark.parametrize("warm_up", [1, 3])
def test_replays_are_steps(warm_up: int, rule: dict[str, Any], backend: str) -> None:
    """Between steps without the graph, before and after."""
    case = Case(SHAPES, options=rule)
    params = case.params()
    optimizer = case.optimizer(params, backend)
    grads, write = gradients(case, 8), fixed_grads(params)
    for values in grads[:warm_up]:
        write(values)
        optimizer.step()
    replay = capture(optimizer.step)
    for values in grads[warm_up:6]:
        write(values)
        replay()
    for values in grads[6:]:
        write(values)
        optimizer.step()
    assert_same_bits(params, optimizer, *case.run(backend, 8))


@on_kernels
@pytest.mark.parametrize("storage", STORAGE)
def test_replays_with_storage_in_16_bits(storage: str, backend: str) -> None:
    """Masters are updated, and stochastic rounding draws anew and is counted."""
    case = case_of(storage)
    params, optimizer = case.run(backend, 1)
    grads, write = gradients(case, 5), fixed_grads(params)
    write(grads[1])
    optimizer.step()
    replay = capture(optimizer.step)
    for values in grads[2:]:
        write(values)
        replay()
    assert_same_bits(params, optimizer, *case.run(backend, 5))


@on_kernels
@over_rules
def test_the_learning_rate_is_that_of_the_replay(rule: dict[str, Any], backend: str) -> None:
    rates = [1e-4, 1e-4, 2e-4, 5e-5, 1e-4]
    runs = []
    for in_graph in (True, False):
        lr = torch.tensor(rates[0], device=DEVICE)
        case = Case(SHAPES, options={**rule, "lr": lr})
        params = case.params()
        optimizer = case.optimizer(params, backend)
        write = fixed_grads(params)
        step: Callable[[], object] = optimizer.step
        for number, (rate, values) in enumerate(zip(rates, gradients(case, len(rates)), strict=True)):
            if in_graph and number == 2:
                step = capture(optimizer.step)
            lr.fill_(rate)
            write(values)
            step()
        runs.append((params, optimizer))
    assert_same_bits(*runs[0], *runs[1])


@on_kernels
@over_rules
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_an_overflow_before_a_replay_leaves_no_trace(dtype: torch.dtype, rule: dict[str, Any], backend: str) -> None:
    """Also where it comes before any step: the first replay without one is then the first step."""
    case = Case(SHAPES, dtype, options=rule)
    params = case.params()
    optimizer = case.optimizer(params, backend)
    grads, write = gradients(case, 3), fixed_grads(params)
    grad_scale, found_inf = torch.ones((), device=DEVICE), torch.ones((), device=DEVICE)
    vars(optimizer)["grad_scale"], vars(optimizer)["found_inf"] = grad_scale, found_inf  # as GradScaler does
    broken = [torch.full_like(param, float("inf")) for param in params]
    write(broken)
    for _ in range(2):
        optimizer.step()
    replay = capture(optimizer.step)
    for scale, values in ((1.0, broken), (4.0, grads[0]), (4.0, broken), (2.0, grads[1]), (8.0, grads[2])):
        overflow = values is broken
        grad_scale.fill_(scale)  # a power of two, which changes no digit
        found_inf.fill_(float(overflow))
        write([value * scale for value in values])
        before = [bits(param) for param in params]
        replay()
        assert ([bits(param) for param in params] == before) == overflow
    del vars(optimizer)["grad_scale"], vars(optimizer)["found_inf"]
    assert_same_bits(params, optimizer, *case.run(backend, 3))


@on_kernels
def test_a_checkpoint_after_overflows_alone_has_no_momentum(backend: str) -> None:
    case = Case(SHAPES, options=TRACK)
    params = case.params()
    optimizer = case.optimizer(params, backend)
    give(params, gradients(case, 1)[0])
    vars(optimizer)["found_inf"] = torch.ones((), device=DEVICE)
    optimizer.step()
    replay = capture(optimizer.step)
    replay()
    assert not any(param.numel() and state for param, state in zip(params, states_of(optimizer, params), strict=True))
    vars(optimizer)["found_inf"].zero_()
    replay()
    assert all("momentum_buffer" in state for state in states_of(optimizer, params))


@on_kernels
@over_rules
def test_a_whole_training_step(rule: dict[str, Any], backend: str) -> None:
    """Forward, backward and step in one graph, on other inputs at each replay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 5)).to(DEVICE)
    other_model = copy.deepcopy(model)
    batches = [(randn((24, 16)), randn((24, 5))) for _ in range(7)]
    inputs, targets = (torch.empty_like(tensor) for tensor in batches[0])
    optimizer, other = (
        ScaleAmendedSGD(parameter_groups(network), **{**rule, "lr": 0.01}, backend=backend)
        for network in (model, other_model)
    )

    def load(batch: tuple[Tensor, Tensor]) -> None:
        inputs.copy_(batch[0])
        targets.copy_(batch[1])

    def train(network: nn.Module, stepping: ScaleAmendedSGD) -> None:
        stepping.zero_grad()
        (network(inputs) - targets).square().mean().backward()
        stepping.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch asks for before a capture of backward passes
        for batch in batches[:3]:
            load(batch)
            train(model, optimizer)
    torch.cuda.current_stream().wait_stream(stream)
    replay = capture(lambda: train(model, optimizer), stream)
    for batch in batches[3:]:
        load(batch)
        replay()
    for batch in batches:
        load(batch)
        train(other_model, other)
    for ours, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        assert_close(ours, theirs, torch.float32)
    norms, other_norms = ([row.row_norm_sq for row in o.layer_report()] for o in (optimizer, other))
    assert norms == pytest.approx(other_norms, rel=1e-5)


@on_kernels
@over_rules
@pytest.mark.filterwarnings("ignore")  # of torch's own, about dynamo
def test_the_graphs_of_reduce_overhead(rule: dict[str, Any], backend: str) -> None:
    """Such a replay would run nothing of a step's Python: it has to stay outside of them, on any version of torch."""
    case = Case(SHAPES, options=rule)
    params = case.params()
    optimizer = case.optimizer(params, backend)
    grads, write = gradients(case, 6), fixed_grads(params)
    step = torch.compile(optimizer.step, mode="reduce-overhead")
    for values in grads:
        write(values)
        step()
    for ours, theirs in zip(params, case.run(backend, 6)[0], strict=True):
        assert_close(ours, theirs, torch.float32)
