"""Means over seeds with 95 % intervals, by Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and the half width of its 95 % interval; NaN where a value was not finite, the width for one value too."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Takes one value for each seed; for a paired difference, the difference of each seed."""
        count = len(values)
        mean = math.fsum(values) / count
        if not math.isfinite(mean):
            return cls(math.nan, math.nan)
        if count == 1:
            return cls(mean, math.nan)
        quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
        return cls(mean, quantile * statistics.stdev(values) / math.sqrt(count))

    def format(self, digits: int, sign: str = "") -> str:
        """Mean ± half width, or the mean alone; `sign` "+" shows the sign of a positive mean too."""
        interval = f" ± {self.half_width:.{digits}f}" if math.isfinite(self.half_width) else ""
        return f"{self.mean:{sign}.{digits}f}{interval}"
