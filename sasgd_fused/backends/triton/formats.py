"""How the weights and momentum buffers of a plan are stored: what its variant of the kernels is compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_FLOAT32, _BFLOAT16 = 0, 1  # dtype codes


class Formats(NamedTuple):
    """All ordinary, unless one of these holds. They are the optimizer's options, so they hold for a whole plan.

    Attributes:
        has_masters: the weights of parameters with 16 bits are float32 masters, whose copies the parameters are.
        has_small_momentum: float32 weights have bfloat16 momentum buffers.
        is_stochastic: bfloat16 weights and momentum buffers are rounded stochastically.
    """

    has_masters: bool = False
    has_small_momentum: bool = False
    is_stochastic: bool = False


ORDINARY = Formats()


def formats_of(tensors: Sequence[tuple[int, int, int]], storage: Sequence[tuple[int, bool, bool, int]]) -> Formats:
    """The formats of a plan, from the arguments of `kernel.TritonKernel`.

    Raises:
        ValueError: tensors of one dtype are not stored alike.
    """
    if not storage:
        return ORDINARY
    copies, small, stochastic, _ = zip(*storage, strict=True)
    formats = Formats(any(copies), any(small), any(stochastic))
    for t, ((_, _, weight), (copy, *others, _)) in enumerate(zip(tensors, storage, strict=True)):
        param = copy or weight
        is_small = formats.has_small_momentum and weight == _FLOAT32
        is_stochastic = formats.is_stochastic and (is_small or weight == _BFLOAT16)
        expected = (_FLOAT32, param) if formats.has_masters else (param, _FLOAT32)
        if ((weight, copy), *others) != (expected, is_small, is_stochastic):
            raise ValueError(f"storage: tensor {t} is stored otherwise than the others make expect")
    return formats
