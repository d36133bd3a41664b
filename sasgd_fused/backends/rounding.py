"""Stochastic rounding to bfloat16 in torch's operations: the twin of that part of csrc/update_rule.h."""

from __future__ import annotations

import torch
from torch import Tensor

from sasgd_fused.precision import Precision, mix

_WORD = 0xFFFFFFFF
_HALF = 0xFFFF


def random_words(like: Tensor, stream: int, rounding_step: int) -> Tensor:
    """32 random bits for each element, by the element's place in memory.

    Args:
        like: a tensor whose dense copy gives shape and layout.
        stream: see `Precision`.
        rounding_step: how many steps of this tensor have been rounded stochastically.

    Returns:
        int64, of the shape of `like`.
    """
    of_step = mix(stream + rounding_step)
    places = torch.arange(like.numel(), device=like.device)
    in_order = [_bits_of(part, mix(of_step + high)) for high, part in enumerate(torch.split(places, 2**32))]
    return torch.as_strided(torch.cat(in_order), like.shape, torch.empty_like(like, device="meta").stride())


def round_stochastically(values: Tensor, random: Tensor) -> Tensor:
    """Rounds up or down to bfloat16, each as often as makes the mean that of the float32 values.

    Args:
        values: rounded to float32 first.
        random: 16 random bits for each.
    """
    exact = values.float()
    bits = exact.view(torch.int32).long() & _WORD
    upper = (bits + random) >> 16
    rounded = (upper << 16).to(torch.int32).view(torch.float32).to(torch.bfloat16)
    return torch.where(exact.isnan(), exact.to(torch.bfloat16), rounded)


def bits_for_weight(precision: Precision, param: Tensor, rounding_step: int) -> Tensor | None:
    """The random bits for a parameter's weights; None where they are rounded to nearest."""
    return random_words(param, precision.stream, rounding_step) & _HALF if precision.rounds_weight else None


def bits_for_momentum(precision: Precision, param: Tensor, rounding_step: int) -> Tensor | None:
    """The random bits for its momentum buffer; None where that is rounded to nearest."""
    return random_words(param, precision.stream, rounding_step) >> 16 if precision.rounds_momentum else None


def store(to: Tensor, values: Tensor, random: Tensor | None) -> None:
    """Rounds values to a tensor's dtype, to nearest if there are no random bits."""
    to.copy_(values if random is None else round_stochastically(values, random))


def _bits_of(places: Tensor, key: int) -> Tensor:
    low, high = key & _WORD, key >> 32
    x = (((places & _WORD) ^ low) * 0x85EBCA6B) & _WORD
    x = (((x ^ (x >> 16)) ^ high) * 0xC2B2AE35) & _WORD
    x = ((x ^ (x >> 15)) * 0x27D4EB2F) & _WORD
    return x ^ (x >> 16)
