"""Has the Triton backend compile its kernels for plans with mixed storage or the relative scale; see triton_code.

It takes a target and the name of a variant:

    python -m tests.kernels.triton_storage_code sm_90 "stochastic rounding"
"""

from __future__ import annotations

import json
import sys

from sasgd_fused.backends.triton.variant import Variant
from tests.kernels.triton_code import MANY, TARGETS, UNALIGNED, begin, told_of

# All that options can make, with the dtypes of the parameters that they are for.
VARIANTS = {
    "masters": (Variant(has_masters=True), (0, 1, 2)),
    "small momentum": (Variant(has_small_momentum=True), (0, 1)),
    "stochastic rounding": (Variant(is_stochastic=True), (0, 1)),
    "small momentum, stochastic rounding": (Variant(has_small_momentum=True, is_stochastic=True), (0, 1)),
    "masters, small momentum": (Variant(has_masters=True, has_small_momentum=True), (0, 1, 2)),
    "masters, small momentum, stochastic rounding": (Variant(True, True, True), (0, 1, 2)),
    "relative": (Variant(is_relative=True), (0, 1, 2)),
    "relative, masters, small momentum, stochastic rounding": (Variant(True, True, True, True), (0, 1, 2)),
}


def main() -> None:
    """Prints a JSON object, as `triton_code` does."""
    variant, dtypes = VARIANTS[sys.argv[2]]
    model = {"numels": MANY, "dtypes": dtypes, "layers": range(0, len(MANY), 2), "variant": variant}
    misaligned = {"address": 18, "grad_scale": UNALIGNED, "found_inf": UNALIGNED}
    uses = {"gradients as the parameters": model, "gradients in float32": {**model, "wide": True, **misaligned}}
    print(json.dumps(told_of(uses, begin(TARGETS[sys.argv[1]]))))


if __name__ == "__main__":
    main()
