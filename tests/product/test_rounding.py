"""Stochastic rounding: without bias, by reproducible random numbers that are independent of each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import extension
from sasgd_fused.backends.rounding import random_words, round_stochastically
from sasgd_fused.options import Options
from sasgd_fused.precision import mix, precision_of, split_stream
from tests.helpers import DEVICE, Case, backends, cpu_only, randn

BFLOAT16 = torch.bfloat16
SIZE = 4000


def momentum_of(backend: str, values: Tensor, seed: int = 0, count: int = 0) -> Tensor:
    """The first momentum buffer of a gradient, as it is rounded in a tensor's step of that count."""
    param = torch.nn.Parameter(torch.zeros_like(values))
    optimizer = ScaleAmendedSGD(
        [param], lr=0.1, momentum=0.9, momentum_dtype=BFLOAT16, rounding="stochastic", rounding_seed=seed,
        backend=backend,
    )  # fmt: skip
    if count:
        optimizer.state[param]["rounding_step"] = count
    param.grad = values.clone()
    optimizer.step()
    buffer: Tensor = optimizer.state[param]["momentum_buffer"]
    return buffer.float()


def weights_of(backend: str, steps: int, rounding: str) -> Tensor:
    """Weights of 1 after steps down by 1/1000 in all, each far below what bfloat16 resolves there."""
    param = torch.nn.Parameter(torch.ones(SIZE, dtype=BFLOAT16, device=DEVICE))
    optimizer = ScaleAmendedSGD([param], lr=0.25 / steps, rounding=rounding, backend=backend)
    for _ in range(steps):
        param.grad = torch.ones_like(param)
        optimizer.step()
    return param.detach().double()


@pytest.mark.parametrize("backend", backends())
def test_the_mean_is_the_exact_value(backend: str) -> None:
    """For both signs and any share of the way to the next bfloat16; the error of a mean of n is a standard error."""
    for value in (1 + 2**-9, -1 - 2**-10, 1 + 127 / 128 * 2**-7 + 2**-14, 3.14159e-20, -2.71828e20):
        exact = float(torch.tensor(value))
        mean = momentum_of(backend, torch.full((SIZE,), value, device=DEVICE)).double().mean().item()
        gap = 2.0 ** (math.floor(math.log2(abs(exact))) - 7)
        assert abs(mean - exact) < 4 * 0.5 * gap / math.sqrt(SIZE)


@pytest.mark.parametrize("backend", backends())
def test_only_the_two_neighbours_are_taken(backend: str) -> None:
    values = randn((SIZE,), torch.Generator().manual_seed(0))
    stored = momentum_of(backend, values)
    down = (values.view(torch.int32) & -0x10000).view(torch.float32)
    up = ((values.view(torch.int32) & -0x10000) + 0x10000).view(torch.float32)
    assert ((stored == down) | (stored == up)).all()
    assert 0.3 < (stored == up).float().mean() < 0.7


@pytest.mark.parametrize("backend", backends())
def test_what_bfloat16_holds_is_left_as_it_is(backend: str) -> None:
    values = torch.tensor([0.0, -0.0, 1.5, -3e38, 1e-40, math.inf, -math.inf], device=DEVICE).to(BFLOAT16).float()
    assert momentum_of(backend, values).equal(values)
    assert momentum_of(backend, torch.tensor([math.nan], device=DEVICE)).isnan().all()


@pytest.mark.parametrize("backend", backends())
def test_small_updates_are_not_lost(backend: str) -> None:
    """Where rounding to nearest leaves every weight at 1, they go down by 1/4, give or take a random walk."""
    steps = 200
    assert weights_of(backend, steps, "nearest").eq(1).all()
    weights = weights_of(backend, steps, "stochastic")
    assert abs(weights.mean().item() - 0.75) < 4 * weights.std().item() / math.sqrt(SIZE)
    assert 0.001 < weights.std().item() < 0.05


@pytest.mark.parametrize("backend", backends())
def test_the_seed_alone_decides(backend: str) -> None:
    values = randn((SIZE,), torch.Generator().manual_seed(0))
    first = momentum_of(backend, values, seed=1)
    torch.manual_seed(99)  # is no part of it
    assert momentum_of(backend, values, seed=1).equal(first)
    assert momentum_of(backend, values, seed=1).equal(momentum_of("reference", values, seed=1))
    for other in ({"seed": 2}, {"seed": -1}, {"seed": 1, "count": 1}):
        share = (momentum_of(backend, values, **other) != first).float().mean().item()
        assert 0.25 < share < 0.42, "two independent roundings of a value differ once in three times"


@pytest.mark.parametrize("backend", backends())
def test_each_parameter_draws_its_own(backend: str) -> None:
    values = randn((SIZE,), torch.Generator().manual_seed(0))
    params = [torch.nn.Parameter(torch.zeros_like(values)) for _ in range(2)]
    options = {"momentum": 0.9, "momentum_dtype": BFLOAT16, "rounding": "stochastic"}
    optimizer = Case([], options={"lr": 0.1, **options}).optimizer(params, backend)
    for param in params:
        param.grad = values.clone()
    optimizer.step()
    first, second = (optimizer.state[param]["momentum_buffer"] for param in params)
    assert 0.25 < (first != second).float().mean().item() < 0.42


@cpu_only("threads and instruction sets")
@pytest.mark.parametrize("backend", backends(["native"]))
def test_neither_threads_nor_instructions_matter(backend: str, set_num_threads: Callable[[int], None]) -> None:
    case = Case(
        [(300, 211), (70001,)], BFLOAT16, options={"lr": 1e-5, "momentum": 0.9, "rounding": "stochastic"}
    )  # fmt: skip
    instruction_sets = extension.core.instruction_sets()
    runs = []
    try:
        for count, instructions in ((1, instruction_sets[0]), (3, instruction_sets[0]), (2, instruction_sets[-1])):
            set_num_threads(count)
            extension.core.use_instruction_set(instructions)
            runs.append(case.run(backend)[0])
    finally:
        extension.core.use_instruction_set(instruction_sets[0])
    for other in runs[1:]:
        assert all(a.equal(b) for a, b in zip(runs[0], other, strict=True))


def _bits(words: Tensor) -> Tensor:
    """Each of the 32 bits as ±1: (elements, 32)."""
    return ((words.flatten()[:, None] >> torch.arange(32)) & 1).double() * 2 - 1


@cpu_only("numbers that no device changes")
def test_random_bits_are_independent() -> None:
    """Of each other in an element, of those of its neighbours, and of those of other steps, streams and parts."""
    count = 1 << 16
    like = torch.empty(count)
    bits = _bits(random_words(like, mix(1), 0))
    bound = 5 / math.sqrt(count)  # five standard deviations of a mean of ±1
    assert bits.mean(0).abs().max() < bound
    assert (bits.T @ bits / count - torch.eye(32)).abs().max() < bound
    for distance in (1, 2, 3, 8, 16, 256, 1024, 8192):
        assert (bits[distance:].T @ bits[:-distance] / count).abs().max() < 1.1 * bound
    for stream, step in ((mix(1), 1), (mix(1), 2), (mix(2), 0), (split_stream(mix(1), 1), 0), (mix(1), 2**40)):
        other = _bits(random_words(like, stream, step))
        assert (bits.T @ other / count).abs().max() < 1.1 * bound


@cpu_only("numbers that no device changes")
def test_of_one_element_from_step_to_step() -> None:
    """A weight that is rounded the same way again and again would drift."""
    steps = 1 << 12
    words = torch.stack([random_words(torch.empty(8), mix(3), step) for step in range(steps)])
    bound = 5 / math.sqrt(steps)
    for element in range(8):
        bits = _bits(words[:, element])
        assert bits.mean(0).abs().max() < bound
        assert (bits[1:].T @ bits[:-1] / steps).abs().max() < bound


@cpu_only("numbers that no device changes")
def test_known_numbers() -> None:
    """They are part of what a checkpoint means, so they never change."""
    assert mix(1) == 0x5692161D100B05E5
    options = Options("width", "plain", "shape", "track", 1e-3, None, rounding="stochastic")
    assert precision_of(BFLOAT16, options, "weight").stream == 0xE220A8397B1DCDAF  # the first of SplitMix64 for seed 0
    assert random_words(torch.empty(3), mix(1), 7).tolist() == [1486437133, 1542117902, 614009263]
    exact = torch.tensor([1 + 2**-8])
    assert round_stochastically(exact, torch.tensor([0x7FFF])).item() == 1
    assert round_stochastically(exact, torch.tensor([0x8000])).item() == 1 + 2**-7


@pytest.mark.parametrize("backend", backends())
def test_an_emptied_state_begins_anew(backend: str) -> None:
    """Also where the count is on a device and nobody has asked for it yet."""
    values = randn((SIZE,), torch.Generator().manual_seed(0))
    param = torch.nn.Parameter(torch.zeros_like(values))
    options = {"lr": 0.1, "momentum": 0.9, "momentum_dtype": BFLOAT16, "rounding": "stochastic"}
    optimizer = Case([], options=options).optimizer([param], backend)
    buffers = []
    for _ in range(2):
        param.grad = values.clone()
        optimizer.step()
        buffers.append(optimizer.state[param]["momentum_buffer"].clone())
        optimizer.state.clear()
    assert buffers[0].equal(buffers[1])
