"""What a plan's variant of the kernels is compiled for: how weights and momentum are stored, and which scale it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_FLOAT32, _BFLOAT16 = 0, 1  # dtype codes


class Variant(NamedTuple):
    """All plain, unless one of these holds. They are the optimizer's options, so they hold for a whole plan.

    Attributes:
        has_masters: the weights of parameters with 16 bits are float32 masters, to which the parameters are rounded.
        has_small_momentum: float32 weights have bfloat16 momentum buffers.
        is_stochastic: bfloat16 weights and momentum buffers are rounded stochastically.
        is_relative: gradients are scaled by their own norms too.
    """

    has_masters: bool = False
    has_small_momentum: bool = False
    is_stochastic: bool = False
    is_relative: bool = False


PLAIN = Variant()


def variant_of(
    tensors: Sequence[tuple[int, int, int]], precision: Sequence[tuple[int, bool, bool, int]], relative: bool
) -> Variant:
    """The variant of a plan, from the arguments of `kernel.TritonKernel`.

    Raises:
        ValueError: tensors of one dtype are not stored alike.
    """
    if not precision:
        return PLAIN._replace(is_relative=relative)
    param_dtypes, small, stochastic, _ = zip(*precision, strict=True)
    variant = Variant(any(param_dtypes), any(small), any(stochastic), relative)
    for t, ((_, _, weight), (param_dtype, *others, _)) in enumerate(zip(tensors, precision, strict=True)):
        dtype = param_dtype or weight
        is_small = variant.has_small_momentum and weight == _FLOAT32
        is_stochastic = variant.is_stochastic and (is_small or weight == _BFLOAT16)
        expected = (_FLOAT32, dtype) if variant.has_masters else (dtype, _FLOAT32)
        if ((weight, param_dtype), *others) != (expected, is_small, is_stochastic):
            raise ValueError(f"precision: tensor {t} is stored otherwise than the others make expect")
    return variant
