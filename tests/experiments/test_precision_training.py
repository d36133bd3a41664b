"""2000 steps on digits: every way to store weights and momentum gives float32's loss curve, except the naive one."""

from __future__ import annotations

from functools import cache

import pytest
from torch import Tensor

from bench.precision import BASELINE, NEAREST, WAYS, mean_curve
from tests.helpers import cpu_only

SEEDS = range(2)
pytestmark = [cpu_only("the same run on every machine"), pytest.mark.usefixtures("one_thread")]
# Of a stretch of 100 steps, averaged over the seeds, and of the whole curve. Rounding errors of any kind soon lead to
# other weights, and to curves that differ by up to 6 % in a stretch (bench/precision.py shows them).
STRETCH, WHOLE = 0.15, 0.03


@cache
def baseline() -> Tensor:
    return mean_curve(BASELINE, SEEDS)


def deviations(name: str) -> tuple[float, float]:
    """The largest of a stretch, and that of the mean of the logarithms."""
    logs = (mean_curve(name, SEEDS) / baseline()).log()
    return float(logs.abs().max()), float(logs.mean().abs())


@pytest.mark.parametrize("name", [name for name in WAYS if name not in (BASELINE, NEAREST)])
def test_the_loss_curve_is_that_of_float32(name: str) -> None:
    largest, whole = deviations(name)
    assert largest < STRETCH
    assert whole < WHOLE


def test_rounding_to_nearest_is_noticed() -> None:
    """The measure can tell another curve: where small updates are lost, the loss ends up twice as high."""
    largest, whole = deviations(NEAREST)
    assert largest > 4 * STRETCH
    assert whole > 4 * WHOLE
