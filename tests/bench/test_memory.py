"""What a step needs besides what it keeps: the growth of a process's peak."""

from __future__ import annotations

import sys

import pytest

from bench.memory import measure_memory


@pytest.mark.skipif(sys.platform != "linux", reason="the peak resident set is only known on Linux")
@pytest.mark.parametrize(
    ("contender", "needed"), [pytest.param("torch fused", 0, marks=pytest.mark.nightly), ("torch foreach", 4)]
)
def test_what_a_step_puts_aside_is_seen(contender: str, needed: int) -> None:
    """A decayed copy of all gradients by foreach, nothing by the fused step; this large process does not count."""
    memory = measure_memory(contender, threads=1, device="cpu", case="64x65536")
    assert memory.state == 4
    assert memory.during_step == pytest.approx(needed, abs=0.8)
    assert memory.launches is None
