"""The benchmark's layer profiles are those of the published networks, and its figures are sound."""

from __future__ import annotations

import pytest
import torch

from bench.cases import parameter_count, setup, shapes_of
from bench.contenders import OTHERS, OURS, TORCH, why_unavailable

# VGG13 for CIFAR by hand: nine weights for each pair of channels, then the head.
VGG13_PAIRS = (
    3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256
    + 256 * 256 + 256 * 512 + 512 * 512 + 512 * 512 + 512 * 512
)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "parameters", "tensors"),
    [
        ("VGG13-CIFAR", 9 * VGG13_PAIRS + 10 * 512, 11),
        ("ResNet-50", 25_557_032, 161),
        ("VGG16", 138_357_544, 32),
        ("DenseNet-121", 7_978_856, 364),
        ("MobileNetV2", 3_504_872, 158),
        ("160x64", 10_240, 160),
        ("ResNet-152", 60_192_808, 467),
        ("DenseNet-201", 20_013_928, 604),
        ("Pythia-1B", 1_011_781_632, 196),
    ],
)
def test_profiles_have_the_published_totals(case: str, parameters: int, tensors: int) -> None:
    assert parameter_count(case) == parameters
    assert len(shapes_of(case)) == tensors


@pytest.mark.filterwarnings("ignore:Parameter `foreach` is deprecated:DeprecationWarning")  # optimi
@pytest.mark.parametrize(
    "contender", [name for name in (*TORCH, *OURS, *OTHERS) if name != "triton"]
)  # interpreted here
def test_values_stay_normal_and_put(contender: str) -> None:
    if contender.startswith(("native", *OTHERS)) and (reason := why_unavailable(contender)):
        pytest.skip(reason)  # built without a compiler, or not installed
    made = setup("160x64", contender)
    before = [parameter.detach().clone() for parameter in made.parameters]
    for _ in range(100):
        made.step()
    made.check_values()
    moved = [(now.detach() - then).abs().max() for now, then in zip(made.parameters, before, strict=True)]
    assert 0 < max(moved) < 1e-3 * torch.stack(before).std()


@pytest.mark.parametrize("value", [1e-40, float("inf"), float("nan")])
@pytest.mark.parametrize("place", ["weight", "grad", "momentum_buffer"])
def test_a_denormal_or_infinite_value_voids_a_measurement(place: str, value: float) -> None:
    made = setup("160x64", "torch for-loop")
    parameter = made.parameters[3]
    momentum = made.optimizer.state[parameter]["momentum_buffer"]
    {"weight": parameter.detach(), "grad": parameter.grad, "momentum_buffer": momentum}[place][2, 5] = value
    with pytest.raises(RuntimeError, match=f"{place} of parameter 3 has denormal or non-finite"):
        made.check_values()


def test_each_setup_has_the_same_values_in_its_own_memory() -> None:
    one, other = setup("160x64", "torch fused"), setup("160x64", "torch fused")
    for mine, theirs in zip(one.parameters, other.parameters, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.grad is not None and theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
        assert mine.data_ptr() != theirs.data_ptr()
        assert mine.grad.data_ptr() != theirs.grad.data_ptr()


@pytest.mark.parametrize(
    ("contender", "dtype", "expected"),
    [
        ("torch for-loop", torch.float32, 5 * 4),
        ("foreach", torch.bfloat16, 5 * 2),
        ("native, bfloat16 momentum", torch.float32, 3 * 4 + 2 * 2),
    ],
)
def test_each_array_is_counted_once_as_read_and_once_as_written(
    contender: str, dtype: torch.dtype, expected: int
) -> None:
    if contender.startswith("native") and (reason := why_unavailable(contender)):
        pytest.skip(reason)  # built without a compiler
    made = setup("160x64", contender, dtype=dtype)
    assert made.step_bytes() == expected * parameter_count("160x64")


def test_two_moments_move_28_bytes() -> None:
    made = setup("160x64", "torch for-loop")
    for parameter in made.parameters:
        made.optimizer.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        made.optimizer.state[parameter]["step"] = torch.zeros(())  # no array
    assert made.step_bytes() == 28 * parameter_count("160x64")
    assert made.state_bytes() == 8 * parameter_count("160x64")
