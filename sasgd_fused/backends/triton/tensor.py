"""What a program looks up of its tensor: the coefficients of a step, and where a chunk lies."""

from __future__ import annotations

import triton
import triton.language as tl

from sasgd_fused.backends.triton.columns import (
    BACKWARD_FACTOR,
    CHUNK,
    DAMPENING,
    EPS,
    FIRST_CHUNK,
    GROUP,
    GROUP_WORDS,
    LAYER,
    LAYER_WORDS,
    LR,
    LR_ADDRESS,
    MAXIMIZE,
    MOMENTUM,
    NESTEROV,
    NUMEL,
    SCALED,
    SHAPE_DECAY,
    TRACKED,
    TRAITS,
    VECTOR,
    WEIGHT_DECAY,
)
from sasgd_fused.backends.triton.update_rule import decay_scale, layer_scale, relative_scale


@triton.jit
def group_of(tensor, groups):
    """The row of a tensor's group."""
    return groups + tl.load(tensor + GROUP) * GROUP_WORDS


@triton.jit
def learning_rate(group):
    """Of a group, from the host or from the device."""
    lr = tl.load(group + LR)
    address = tl.load(group + LR_ADDRESS).to(tl.int64, bitcast=True)
    if address != 0:
        lr = tl.load(address.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return lr


@triton.jit
def is_left(tensor, row_norm_sq):
    """Whether a step leaves a tensor as it is: a scaled layer whose norm, as the step before left it, is no number.

    That would spoil again what others have put right since. The next step knows the norm, from what this one reads.
    """
    is_carried = (tl.load(tensor + TRAITS) & (SCALED | TRACKED)) == (SCALED | TRACKED)
    norm = tl.load(row_norm_sq + tl.load(tensor + LAYER), mask=is_carried, other=0.0)
    return norm != norm


@triton.jit
def decays_first(traits):
    """Whether decay is a part of the gradient that the relative scale multiplies."""
    return (traits & (SCALED | SHAPE_DECAY | VECTOR)) == SCALED


@triton.jit
def gradient_scale(group, scale, loss_scale):
    """What the gradient is multiplied by: a scale, negated for maximize, divided by the loss scale."""
    signed = tl.where(tl.load(group + MAXIMIZE) != 0, -scale, scale)
    inverse = 1.0 / tl.load(loss_scale).to(tl.float64)
    return (signed * inverse).to(tl.float32)


@triton.jit
def plain_coefficients(tensor, group, loss_scale):
    """The coefficients of a scaled layer's plain gradient, rounded once from float64."""
    weight_decay = tl.load(group + WEIGHT_DECAY)
    decay = tl.where(decays_first(tl.load(tensor + TRAITS)), weight_decay, 0.0)
    scale = gradient_scale(group, tl.full([], 1.0, tl.float64), loss_scale)
    return scale, decay.to(tl.float32), weight_decay != 0


@triton.jit
def coefficients(tensor, group, has_momentum, has_started, layers, row_norm_sq, gradient_norm_sq, loss_scale):
    """The coefficients of a tensor's update, rounded once from float64.

    Args:
        tensor: its row.
        group: that of its group.
        has_momentum: whether it has a momentum buffer.
        has_started: whether that has taken its first gradient.
        layers: the rows of all layers.
        row_norm_sq: of all layers.
        gradient_norm_sq: where the tensor's v_b is; None if the scale is not the relative one.
        loss_scale: where the loss scale is.
    """
    momentum = tl.load(group + MOMENTUM)
    weight_decay = tl.load(group + WEIGHT_DECAY)
    traits = tl.load(tensor + TRAITS)
    scale = tl.full([], 1.0, tl.float64)
    decay = weight_decay
    if traits & SCALED:
        layer = tl.load(tensor + LAYER)
        norm = tl.load(row_norm_sq + layer)
        m = tl.load(layers + layer * LAYER_WORDS + BACKWARD_FACTOR)
        eps = tl.load(layers + layer * LAYER_WORDS + EPS)
        if gradient_norm_sq is None:
            scale = layer_scale(norm, m, eps)
            decay = decay_scale(scale, m, weight_decay, (traits & SHAPE_DECAY) != 0)
        else:
            scale = relative_scale(norm, m, tl.load(gradient_norm_sq), eps, (traits & VECTOR) != 0)
            decay = tl.where(decays_first(traits), scale * weight_decay, weight_decay)
    return (
        gradient_scale(group, scale, loss_scale),
        decay.to(tl.float32),
        weight_decay != 0,
        tl.where(has_started, momentum, 0.0).to(tl.float32),
        tl.where(has_started, 1.0 - tl.load(group + DAMPENING), 1.0).to(tl.float32),
        momentum.to(tl.float32),
        learning_rate(group).to(tl.float32),
        is_left(tensor, row_norm_sq),
        has_momentum,
        tl.load(group + NESTEROV) != 0,
        None if gradient_norm_sq is None else plain_coefficients(tensor, group, loss_scale),
    )


@triton.jit
def chunk_place(chunk, tensor):
    """Where a chunk begins in its tensor, and how many elements it has."""
    offset = (chunk - tl.load(tensor + FIRST_CHUNK)) * CHUNK
    return offset, tl.minimum(tl.load(tensor + NUMEL) - offset, CHUNK).to(tl.int32)
