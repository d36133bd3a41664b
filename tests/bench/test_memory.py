"""What a step moves and needs: bytes of what it reads and writes, and the growth of a process's peak resident set."""

from __future__ import annotations

import sys

import pytest
import torch

from bench.cases import parameter_count, setup
from bench.contenders import why_unavailable
from bench.memory import measure_memory

CASE = "64x65536"


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


@pytest.mark.skipif(sys.platform != "linux", reason="the peak resident set is only known on Linux")
@pytest.mark.parametrize(("contender", "needed"), [("torch fused", 0), ("torch foreach", 4)])
def test_what_a_step_puts_aside_is_seen(contender: str, needed: int) -> None:
    """A decayed copy of all gradients by foreach, nothing by the fused step; this large process does not count."""
    memory = measure_memory(contender, CASE, threads=1)
    assert memory.state == 4
    assert memory.during_step == pytest.approx(needed, abs=0.8)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak resident set is only known on Linux")
def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
        measure_memory("nobody", CASE, threads=1)
