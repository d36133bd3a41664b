"""The kernels: a program for each chunk updates or measures it; then one for each tensor leaves norms and flags.

Their arguments are tables (see columns.py), so nothing about a model or its hyperparameters is compiled in: only how
weights and momentum are stored, where that is not plain, and the relative scale. What has no part in that is None.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sasgd_fused.backends.triton.chunk import sum_chunk, sum_gradient_chunk, update_chunk
from sasgd_fused.backends.triton.columns import (
    ADDRESS_WORDS,
    CHUNKS,
    DTYPE,
    FIRST_CHUNK,
    FIRST_NODE,
    GRADIENT_KNOWN,
    LAYER,
    LAYER_WORDS,
    MOMENTUM_BUFFER,
    NORM_KEPT,
    ROWS,
    SCALED,
    STARTED,
    STOCHASTIC,
    TENSOR_WORDS,
    TRACKED,
    TRAITS,
    WEIGHT,
    WIDE_GRADIENT,
)
from sasgd_fused.backends.triton.sums import add_up_tree
from sasgd_fused.backends.triton.tensor import (
    chunk_place,
    coefficients,
    group_of,
    is_left,
    learning_rate,
    plain_coefficients,
)
from sasgd_fused.backends.triton.update_rule import next_gradient_norm_sq, random_key, same_bits


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
    gradient_parts,
    gradient_norm_sq,
    has_small_momentum: tl.constexpr,
):
    """Updates a chunk, and leaves the sums of squares of its weights before and after, and of its plain gradient.

    With `params_of_masters` parameters of 16 bits have masters; with `streams` bfloat16 is rounded stochastically; with
    `gradient_norm_sq` the scale is the relative one.
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
        group = group_of(tensor, groups)
        v = None if gradient_norm_sq is None else gradient_norm_sq + t
        c = coefficients(tensor, group, momentum_buffer != 0, has_started, layers, row_norm_sq, v, loss_scale)
        small: tl.constexpr = has_small_momentum
        if dtype == 0:
            pairs = update_chunk(memory, count, c, random, tl.float32, tl.float32, has_masters, small)
        elif dtype == 1:
            if is_wide:
                pairs = update_chunk(memory, count, c, random, tl.bfloat16, tl.float32, has_masters, small)
            else:
                pairs = update_chunk(memory, count, c, random, tl.bfloat16, tl.bfloat16, has_masters, small)
        else:
            if is_wide:
                pairs = update_chunk(memory, count, c, random, tl.float16, tl.float32, has_masters, small)
            else:
                pairs = update_chunk(memory, count, c, random, tl.float16, tl.float16, has_masters, small)
        pair, gradient_pair = pairs
        if tl.load(tensor + TRAITS) & TRACKED:
            tl.store(sums + chunk.to(tl.int64) * 2 + tl.arange(0, 2), pair)
        if gradient_parts is not None:
            tl.store(gradient_parts + chunk.to(tl.int64) * 2 + tl.arange(0, 2), gradient_pair)


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
def lacks_gradient_norm(tensor, v):
    """Whether a tensor is a scaled layer whose v_b is not known."""
    return ((tl.load(tensor + TRAITS) & SCALED) != 0) & (tl.load(v) == 0)


@triton.jit(do_not_specialize=["loss_scale", "found_inf"])
def gradient_kernel(
    tensors,
    tensor_of_chunk,
    addresses,
    grads,
    groups,
    loss_scale,
    found_inf,
    gradient_parts,
    gradient_norm_sq,
    has_masters: tl.constexpr,
):
    """Leaves the sum of squares of a chunk's plain gradient, of layers whose v_b is not known."""
    chunk = tl.program_id(0)
    t = tl.load(tensor_of_chunk + chunk)
    word = tl.load(grads + t)
    tensor = tensors + t * TENSOR_WORDS
    if (word != 0) & (tl.load(found_inf) == 0) & lacks_gradient_norm(tensor, gradient_norm_sq + t):
        dtype = tl.load(tensor + DTYPE)
        offset, count = chunk_place(chunk, tensor)
        is_wide = (word & WIDE_GRADIENT) != 0
        size = tl.where(dtype == 0, 4, 2)
        weight = tl.load(addresses + t * ADDRESS_WORDS + WEIGHT) + offset * (4 if has_masters else size)
        grad = (word & ~WIDE_GRADIENT) + offset * tl.where(is_wide, 4, size)
        plain = plain_coefficients(tensor, group_of(tensor, groups), loss_scale)
        if dtype == 0:
            pair = sum_gradient_chunk(weight, grad, count, plain, tl.float32, tl.float32, has_masters)
        elif dtype == 1:
            if is_wide:
                pair = sum_gradient_chunk(weight, grad, count, plain, tl.bfloat16, tl.float32, has_masters)
            else:
                pair = sum_gradient_chunk(weight, grad, count, plain, tl.bfloat16, tl.bfloat16, has_masters)
        else:
            if is_wide:
                pair = sum_gradient_chunk(weight, grad, count, plain, tl.float16, tl.float32, has_masters)
            else:
                pair = sum_gradient_chunk(weight, grad, count, plain, tl.float16, tl.float16, has_masters)
        tl.store(gradient_parts + chunk.to(tl.int64) * 2 + tl.arange(0, 2), pair)


@triton.jit
def add_up_tensor(sums, tensor, all_chunks):
    """Adds up the sums of a tensor's chunks; returns a pointer to both."""
    node = all_chunks + tl.load(tensor + FIRST_NODE)
    return sums + 2 * add_up_tree(sums, tl.load(tensor + FIRST_CHUNK), tl.load(tensor + CHUNKS), node)


@triton.jit
def carry_gradient(tensor, gradient_parts, all_chunks, v, gradient_sum):
    """Adds up the sums of a layer's gradient and leaves its norm; returns the flag of one that is known."""
    measured = tl.load(add_up_tensor(gradient_parts, tensor, all_chunks))
    after = next_gradient_norm_sq(tl.load(v), measured)
    tl.store(gradient_sum, measured)
    tl.store(v, after)
    return tl.where(after != 0, GRADIENT_KNOWN, 0).to(tl.uint8)


@triton.jit
def carry_norm(tensor, layers, sums, all_chunks, sum_squares, row_norm_sq, stale_steps, compare: tl.constexpr):
    """Adds up a layer's sums and leaves its norm; counts the steps whose norm was not that of the weights read."""
    root = add_up_tensor(sums, tensor, all_chunks)
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
    gradient_parts,
    gradient_norm_sq,
    gradient_sums,
):
    """What a step leaves for the next one of a tensor."""
    t = tl.program_id(0)
    if (tl.load(grads + t) != 0) & (tl.load(found_inf) == 0):
        tensor = tensors + t * TENSOR_WORDS
        traits = tl.load(tensor + TRAITS)
        known = tl.full([], 0, tl.uint8)
        if gradient_parts is not None:
            was_scaled = ((traits & SCALED) != 0) & (not is_left(tensor, row_norm_sq))
            if was_scaled:
                known = carry_gradient(tensor, gradient_parts, all_chunks, gradient_norm_sq + t, gradient_sums + t)
        flag = tl.load(flags + t) | known
        if (tl.load(addresses + t * ADDRESS_WORDS + MOMENTUM_BUFFER) != 0) & (not is_left(tensor, row_norm_sq)):
            flag |= STARTED
        if traits & TRACKED:
            carry_norm(tensor, layers, sums, all_chunks, sum_squares, row_norm_sq, stale_steps, True)
        elif ((traits & SCALED) != 0) & (learning_rate(group_of(tensor, groups)) != 0):
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


@triton.jit(do_not_specialize=["all_chunks", "found_inf"])
def finish_gradient_kernel(
    tensors, grads, all_chunks, flags, found_inf, gradient_parts, gradient_norm_sq, gradient_sums
):
    """What a pass over the gradients leaves of a layer."""
    t = tl.program_id(0)
    tensor = tensors + t * TENSOR_WORDS
    v = gradient_norm_sq + t
    if (tl.load(grads + t) != 0) & (tl.load(found_inf) == 0) & lacks_gradient_norm(tensor, v):
        known = carry_gradient(tensor, gradient_parts, all_chunks, v, gradient_sums + t)
        tl.store(flags + t, tl.load(flags + t) | known)
