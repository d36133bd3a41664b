"""How weights and momentum are stored where 16 bits are involved: masters, small momentum, stochastic rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sasgd_fused.options import Options

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's step from one stream to the next


@dataclass(frozen=True)
class Precision:
    """How one parameter's weights and momentum buffer are stored.

    Attributes:
        has_master: the weights that are updated, and whose norms are taken, are a float32 copy in the state.
        momentum_dtype: of the momentum buffer.
        rounds_weight: the weights are rounded stochastically.
        rounds_momentum: the momentum buffer is.
        has_small_momentum: the weights are float32, the momentum buffer is bfloat16.
        stream: 64 bits from which the random numbers for that are made.
    """

    has_master: bool
    momentum_dtype: torch.dtype
    rounds_weight: bool
    rounds_momentum: bool
    has_small_momentum: bool
    stream: int

    @property
    def is_stochastic(self) -> bool:
        """Whether steps need random numbers."""
        return self.rounds_weight or self.rounds_momentum

    @property
    def is_plain(self) -> bool:
        """Whether a step is as if there were no such options."""
        return not (self.has_master or self.has_small_momentum or self.is_stochastic)


def precision_of(dtype: torch.dtype, options: Options, name: str, place: int = 0) -> Precision:
    """How a parameter is stored.

    Args:
        dtype: the parameter's.
        options: the optimizer's.
        name: the parameter's, for messages.
        place: its place among all parameters of the optimizer.

    Raises:
        ValueError: the options are not for this dtype; the message names the parameter.
    """
    has_master = options.master_weights and dtype in (torch.bfloat16, torch.float16)
    weight = torch.float32 if has_master else dtype
    momentum = options.momentum_dtype or weight
    if options.momentum_dtype is not None and weight not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"momentum_dtype: got {options.momentum_dtype} for {name}, which is {dtype}, want float32 or bfloat16 "
            "parameters, or master_weights=True"
        )
    is_stochastic = options.rounding == "stochastic"
    if is_stochastic and weight == torch.float16:
        raise ValueError(
            f"rounding: got 'stochastic' for {name}, which is {dtype}, want float32 or bfloat16 parameters, or "
            "master_weights=True"
        )
    return Precision(
        has_master,
        momentum,
        is_stochastic and weight == torch.bfloat16,
        is_stochastic and momentum == torch.bfloat16,
        momentum != weight,
        mix(mix(options.rounding_seed) + (place + 1) * _GAMMA),
    )


def split_stream(stream: int, part: int) -> int:
    """The stream of one part of a parameter that is dealt out to several ranks; part 0 has the whole's."""
    return mix(stream ^ part) if part else stream


def mix(x: int) -> int:
    """SplitMix64's finalizer, as in csrc/update_rule.h."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
