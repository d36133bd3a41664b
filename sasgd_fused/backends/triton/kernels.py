"""The kernels: a program for each chunk updates or measures it; then one for each tensor leaves norms and flags.

Their arguments are tables (see columns.py), so nothing about a model or its hyperparameters is compiled in: only how
weights and momentum are stored, where that is not plain. What has no part in that is None.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sasgd_fused.backends.triton.chunk import sum_chunk, update_chunk
from sasgd_fused.backends.triton.columns import (
    ADDRESS_WORDS,
    BACKWARD_FACTOR,
    CHUNK,
    CHUNKS,
    DAMPENING,
    DTYPE,
    EPS,
    FIRST_CHUNK,
    FIRST_NODE,
    GROUP,
    GROUP_WORDS,
    LAYER,
    LAYER_WORDS,
    LR,
    LR_ADDRESS,
    MAXIMIZE,
    MOMENTUM,
    MOMENTUM_BUFFER,
    NESTEROV,
    NORM_KEPT,
    NUMEL,
    ROWS,
    SCALED,
    SHAPE_DECAY,
    STARTED,
    STOCHASTIC,
    TENSOR_WORDS,
    TRACKED,
    TRAITS,
    WEIGHT,
    WEIGHT_DECAY,
    WIDE_GRADIENT,
)
from sasgd_fused.backends.triton.sums import add_up_tree
from sasgd_fused.backends.triton.update_rule import decay_scale, layer_scale, random_key, same_bits


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
def coefficients(tensor, group, has_momentum, has_started, layers, row_norm_sq, loss_scale):
    """The coefficients of a tensor's update, rounded once from float64."""
    momentum = tl.load(group + MOMENTUM)
    weight_decay = tl.load(group + WEIGHT_DECAY)
    traits = tl.load(tensor + TRAITS)
    scale = tl.full([], 1.0, tl.float64)
    decay = weight_decay
    if traits & SCALED:
        layer = tl.load(tensor + LAYER)
        m = tl.load(layers + layer * LAYER_WORDS + BACKWARD_FACTOR)
        scale = layer_scale(tl.load(row_norm_sq + layer), m, tl.load(layers + layer * LAYER_WORDS + EPS))
        decay = decay_scale(scale, m, weight_decay, (traits & SHAPE_DECAY) != 0)
    signed = tl.where(tl.load(group + MAXIMIZE) != 0, -scale, scale)
    inverse = 1.0 / tl.load(loss_scale).to(tl.float64)
    return (
        (signed * inverse).to(tl.float32),
        decay.to(tl.float32),
        weight_decay != 0,
        tl.where(has_started, momentum, 0.0).to(tl.float32),
        tl.where(has_started, 1.0 - tl.load(group + DAMPENING), 1.0).to(tl.float32),
        momentum.to(tl.float32),
        learning_rate(group).to(tl.float32),
        is_left(tensor, row_norm_sq),
        has_momentum,
        tl.load(group + NESTEROV) != 0,
    )


@triton.jit
def chunk_place(chunk, tensor):
    """Where a chunk begins in its tensor, and how many elements it has."""
    offset = (chunk - tl.load(tensor + FIRST_CHUNK)) * CHUNK
    return offset, tl.minimum(tl.load(tensor + NUMEL) - offset, CHUNK).to(tl.int32)


@triton.jit(do_not_specialize=["loss_scale", "found_inf"])
def step_kernel(
    tensors,
    tensor_of_chunk,
    layers,
    addresses,
    grads,
    groups,
    sums,
    row_norm_sq,
    flags,
    loss_scale,
    found_inf,
    params_of_masters,
    streams,
    rounding_steps,
    has_small_momentum: tl.constexpr,
):
    """Updates a chunk, and leaves the sums of squares of its weights before and after.

    With `params_of_masters` parameters of 16 bits have masters; with `streams` bfloat16 is rounded stochastically.
    """
    has_masters: tl.constexpr = params_of_masters is not None
    chunk = tl.program_id(0)
    t = tl.load(tensor_of_chunk + chunk)
    word = tl.load(grads + t)
    if (word != 0) & (tl.load(found_inf) == 0):
        tensor = tensors + t * TENSOR_WORDS
        dtype = tl.load(tensor + DTYPE)
        offset, count = chunk_place(chunk, tensor)
        weight = tl.load(addresses + t * ADDRESS_WORDS + WEIGHT)
        momentum_buffer = tl.load(addresses + t * ADDRESS_WORDS + MOMENTUM_BUFFER)
        is_wide = (word & WIDE_GRADIENT) != 0
        size = tl.where(dtype == 0, 4, 2)
        weight_size = 4 if has_masters else size
        memory = (
            weight + offset * weight_size,
            (word & ~WIDE_GRADIENT) + offset * tl.where(is_wide, 4, size),
            momentum_buffer + offset * (2 if has_small_momentum else weight_size),
            None if params_of_masters is None else tl.load(params_of_masters + t) + offset * size,
        )
        random = None
        if streams is not None:
            key = random_key(tl.load(streams + t), tl.load(rounding_steps + t), offset)
            random = (offset.to(tl.uint32), key)
        has_started = (tl.load(flags + t) & STARTED) != 0
        group = groups + tl.load(tensor + GROUP) * GROUP_WORDS
        c = coefficients(tensor, group, momentum_buffer != 0, has_started, layers, row_norm_sq, loss_scale)
        small: tl.constexpr = has_small_momentum
        if dtype == 0:
            pair = update_chunk(memory, count, c, random, tl.float32, tl.float32, has_masters, small)
        elif dtype == 1:
            if is_wide:
                pair = update_chunk(memory, count, c, random, tl.bfloat16, tl.float32, has_masters, small)
            else:
                pair = update_chunk(memory, count, c, random, tl.bfloat16, tl.bfloat16, has_masters, small)
        else:
            if is_wide:
                pair = update_chunk(memory, count, c, random, tl.float16, tl.float32, has_masters, small)
            else:
                pair = update_chunk(memory, count, c, random, tl.float16, tl.float16, has_masters, small)
        if tl.load(tensor + TRAITS) & TRACKED:
            tl.store(sums + chunk.to(tl.int64) * 2 + tl.arange(0, 2), pair)


@triton.jit
def norm_kernel(tensors, tensor_of_chunk, addresses, chosen, sums, flags, has_masters: tl.constexpr):
    """Leaves the sum of squares of a chunk's weights."""
    chunk = tl.program_id(0)
    t = tl.load(tensor_of_chunk + chunk)
    if (tl.load(chosen + t) != 0) & ((tl.load(flags + t) & NORM_KEPT) == 0):
        tensor = tensors + t * TENSOR_WORDS
        dtype = 0 if has_masters else tl.load(tensor + DTYPE)
        offset, count = chunk_place(chunk, tensor)
        weight = tl.load(addresses + t * ADDRESS_WORDS + WEIGHT) + offset * tl.where(dtype == 0, 4, 2)
        if dtype == 0:
            pair = sum_chunk(weight, count, tl.float32)
        elif dtype == 1:
            pair = sum_chunk(weight, count, tl.bfloat16)
        else:
            pair = sum_chunk(weight, count, tl.float16)
        tl.store(sums + chunk.to(tl.int64) * 2 + tl.arange(0, 2), pair)


@triton.jit
def carry_norm(tensor, layers, sums, all_chunks, sum_squares, row_norm_sq, stale_steps, compare: tl.constexpr):
    """Adds up a layer's sums and leaves its norm; counts the steps whose norm was not that of the weights read."""
    node = all_chunks + tl.load(tensor + FIRST_NODE)
    root = sums + 2 * add_up_tree(sums, tl.load(tensor + FIRST_CHUNK), tl.load(tensor + CHUNKS), node)
    layer = tl.load(tensor + LAYER)
    if compare:
        is_stale = not same_bits(tl.load(root), tl.load(sum_squares + layer))
        if is_stale & ((tl.load(tensor + TRAITS) & SCALED) != 0) & (not is_left(tensor, row_norm_sq)):
            tl.store(stale_steps + layer, tl.load(stale_steps + layer) + 1)
    written = tl.load(root + 1)
    norm = written / tl.load(layers + layer * LAYER_WORDS + ROWS)
    if compare:
        # An infinite one becomes no number, but not in a norm pass: infinite weights that nobody put right are noticed.
        norm = tl.where((tl.load(tensor + TRAITS) & SCALED) != 0, norm + (norm - norm), norm)
    tl.store(sum_squares + layer, written)
    tl.store(row_norm_sq + layer, norm)


@triton.jit(do_not_specialize=["all_chunks", "found_inf"])
def finish_step_kernel(
    tensors,
    layers,
    addresses,
    grads,
    groups,
    sums,
    all_chunks,
    sum_squares,
    row_norm_sq,
    stale_steps,
    flags,
    found_inf,
    rounding_steps,
):
    """What a step leaves for the next one of a tensor."""
    t = tl.program_id(0)
    if (tl.load(grads + t) != 0) & (tl.load(found_inf) == 0):
        tensor = tensors + t * TENSOR_WORDS
        traits = tl.load(tensor + TRAITS)
        flag = tl.load(flags + t)
        if (tl.load(addresses + t * ADDRESS_WORDS + MOMENTUM_BUFFER) != 0) & (not is_left(tensor, row_norm_sq)):
            flag |= STARTED
        if traits & TRACKED:
            carry_norm(tensor, layers, sums, all_chunks, sum_squares, row_norm_sq, stale_steps, True)
        elif ((traits & SCALED) != 0) & (learning_rate(groups + tl.load(tensor + GROUP) * GROUP_WORDS) != 0):
            norm = tl.load(row_norm_sq + tl.load(tensor + LAYER))
            if norm - norm == 0:  # finite
                flag |= NORM_KEPT
        tl.store(flags + t, flag)
        if rounding_steps is not None:
            count = tl.load(rounding_steps + t)
            tl.store(rounding_steps + t, count + 1, mask=(traits & STOCHASTIC) != 0)


@triton.jit(do_not_specialize=["all_chunks"])
def finish_norm_kernel(tensors, layers, chosen, sums, all_chunks, sum_squares, row_norm_sq, stale_steps, flags):
    """What a norm pass leaves of a layer."""
    t = tl.program_id(0)
    if (tl.load(chosen + t) != 0) & ((tl.load(flags + t) & NORM_KEPT) == 0):
        tensor = tensors + t * TENSOR_WORDS
        carry_norm(tensor, layers, sums, all_chunks, sum_squares, row_norm_sq, stale_steps, False)
