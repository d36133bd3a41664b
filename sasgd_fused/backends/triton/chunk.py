"""What a program does with one chunk: the loops of the step and of the passes that take norms.

A lane takes elements by their place in the chunk alone, whether memory is aligned or not and in tails too. Vectors of
16 bytes come first; a second loop takes what is left element by element: the last few of a tail, or all of a misaligned
tensor.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sasgd_fused.backends.triton.columns import ELEMENTS, LANES
from sasgd_fused.backends.triton.sums import add_in_order, add_up_lanes
from sasgd_fused.backends.triton.update_rule import (
    amended_gradient,
    direction,
    next_momentum,
    next_weight,
    plain_gradient,
    random_bits,
    rounded,
)


@triton.jit
def allows_vectors(address):
    """Whether memory may be accessed 16 bytes at a time from there on."""
    return (address & 15) == 0


@triton.jit
def pointers(address, places, dtype: tl.constexpr, as_vectors: tl.constexpr):
    """Pointers to elements of a chunk."""
    base = address.to(tl.pointer_type(dtype))
    if as_vectors:
        base = tl.multiple_of(base, 16)
    return base + places


@triton.jit
def tile(first, vectors, count, per_vector: tl.constexpr, as_vectors: tl.constexpr):
    """The places of a tile's elements in the chunk, a vector to a row, and which of them are to be taken.

    Args:
        first: the tile's first vector.
        vectors: of the chunk that are taken whole.
        count: the chunk's elements.
        per_vector: elements of a vector.
        as_vectors: takes whole vectors, else what is left of the chunk.
    """
    rows: tl.constexpr = LANES * ELEMENTS // per_vector
    row = (first + tl.arange(0, rows))[:, None]
    places = row * per_vector + tl.arange(0, per_vector)[None, :]
    if as_vectors:
        mask = tl.broadcast_to(row < vectors, rows, per_vector)
    else:
        mask = (places >= vectors * per_vector) & (places < count)
    return places, mask


@triton.jit
def update_tiles(
    memory, first, end, vectors, count, sums, c, random, W: tl.constexpr, G: tl.constexpr, M: tl.constexpr,
    C: tl.constexpr, as_vectors: tl.constexpr, grad_as_vectors: tl.constexpr,
):  # fmt: skip
    """Updates the tiles from vector `first` to `end`; adds the squares of what was read and is stored to the sums.

    In the relative scale those of the plain gradient too.
    """
    weight, grad, momentum_buffer, param = memory
    read, written, gradient = sums
    grad_scale, decay_scale, decays, carry, share, momentum, lr, is_left, has_momentum, nesterov, plain = c
    per_vector: tl.constexpr = 128 // W.primitive_bitwidth  # elements that are 16 bytes
    for at in range(first, end, LANES * ELEMENTS // per_vector):
        places, mask = tile(at, vectors, count, per_vector, as_vectors)
        w = pointers(weight, places, W, as_vectors)
        m = pointers(momentum_buffer, places, M, as_vectors)
        before = tl.load(w, mask, other=0.0).to(tl.float32)
        g = tl.load(pointers(grad, places, G, grad_as_vectors), mask, other=0.0).to(tl.float32)
        buffer = tl.load(m, mask & has_momentum, other=0.0).to(tl.float32)
        amended = amended_gradient(g, before, grad_scale, decay_scale, decays)
        buffer = next_momentum(amended, buffer, carry, share)
        along = direction(amended, buffer, momentum, has_momentum, nesterov)
        if random is None:
            for_weight, for_momentum = None, None
        else:
            offset, key = random
            words = random_bits(offset + places.to(tl.uint32), key)
            for_weight, for_momentum = words, words >> 16
        stored = rounded(next_weight(before, along, lr), W, for_weight)
        to_store = mask & (not is_left)
        tl.store(m, rounded(buffer, M, for_momentum), to_store & has_momentum)
        tl.store(w, stored, to_store)
        if param is not None:
            tl.store(pointers(param, places, C, as_vectors), stored.to(C), to_store)
        after = tl.where(is_left, before, stored.to(tl.float32))
        read = add_in_order(read, before * before, per_vector)
        written = add_in_order(written, after * after, per_vector)
        if plain is not None:
            unscaled = plain_gradient(g, before, plain)
            gradient = add_in_order(gradient, unscaled * unscaled, per_vector)
    return read, written, gradient


@triton.jit
def update_chunk(
    memory, count, c, random, P: tl.constexpr, G: tl.constexpr, has_masters: tl.constexpr,
    has_small_momentum: tl.constexpr,
):  # fmt: skip
    """Updates a chunk; returns its sums of squares.

    Args:
        memory: addresses of weights, gradient, momentum buffer and the parameters of masters, None if there are none.
        count: elements.
        c: the coefficients.
        random: the low 32 bits of the chunk's place in its tensor, and a key; None if all is rounded to nearest.
        P: dtype of the parameter.
        G: dtype of the gradient.
        has_masters: whether all weights are float32: masters of the parameters with 16 bits, if they have these.
        has_small_momentum: whether the momentum of float32 weights is bfloat16.

    Returns:
        The sums of what was read and of what is stored, and twice that of the plain gradient, or None.
    """
    weight, grad, momentum_buffer, param = memory
    W: tl.constexpr = tl.float32 if has_masters else P
    is_small: tl.constexpr = has_small_momentum and W.primitive_bitwidth == 32
    M: tl.constexpr = tl.bfloat16 if is_small else W
    all_addresses = weight | momentum_buffer
    if W == P:
        memory = weight, grad, momentum_buffer, None
    else:
        all_addresses |= param
    per_vector: tl.constexpr = 128 // W.primitive_bitwidth  # elements that are 16 bytes
    takes_gradient: tl.constexpr = c[-1] is not None
    zeros = tl.zeros([LANES], tl.float32)
    sums = (zeros, zeros, zeros if takes_gradient else None)
    vectors = tl.where(allows_vectors(all_addresses), count // per_vector, 0)
    # Gradients are often views of one flat buffer (DDP): weights and momentum need not suffer for it.
    if allows_vectors(grad):
        sums = update_tiles(memory, 0, vectors, vectors, count, sums, c, random, W, G, M, P, True, True)
    else:
        sums = update_tiles(memory, 0, vectors, vectors, count, sums, c, random, W, G, M, P, True, False)
    rest, end = rest_of(vectors, count, per_vector)
    sums = update_tiles(memory, rest, end, vectors, count, sums, c, random, W, G, M, P, False, False)
    read, written, gradient = sums
    return add_up_lanes(read, written), add_up_lanes(gradient, gradient) if takes_gradient else None


@triton.jit
def rest_of(vectors, count, per_vector: tl.constexpr):
    """From where to where the tiles lie that hold what is left of a chunk after its whole vectors."""
    rows: tl.constexpr = LANES * ELEMENTS // per_vector
    return vectors // rows * rows, tl.where(vectors * per_vector < count, tl.cdiv(count, per_vector), 0)


@triton.jit
def sum_tiles(weight, first, end, vectors, count, sums, W: tl.constexpr, as_vectors: tl.constexpr):
    """Adds the squares of the tiles from vector `first` to `end` to the sums."""
    per_vector: tl.constexpr = 128 // W.primitive_bitwidth  # elements that are 16 bytes
    for at in range(first, end, LANES * ELEMENTS // per_vector):
        places, mask = tile(at, vectors, count, per_vector, as_vectors)
        value = tl.load(pointers(weight, places, W, as_vectors), mask, other=0.0).to(tl.float32)
        sums = add_in_order(sums, value * value, per_vector)
    return sums


@triton.jit
def sum_chunk(weight, count, W: tl.constexpr):
    """The sum of squares of a chunk, twice, as `update_chunk` would return it."""
    per_vector: tl.constexpr = 128 // W.primitive_bitwidth  # elements that are 16 bytes
    sums = tl.zeros([LANES], tl.float32)
    vectors = tl.where(allows_vectors(weight), count // per_vector, 0)
    sums = sum_tiles(weight, 0, vectors, vectors, count, sums, W, True)
    rest, end = rest_of(vectors, count, per_vector)
    sums = sum_tiles(weight, rest, end, vectors, count, sums, W, False)
    return add_up_lanes(sums, sums)


@triton.jit
def sum_gradient_tiles(
    weight, grad, first, end, vectors, count, sums, plain, W: tl.constexpr, G: tl.constexpr, as_vectors: tl.constexpr
):
    """Adds the squares of the plain gradient in the tiles from vector `first` to `end` to the sums."""
    per_vector: tl.constexpr = 128 // W.primitive_bitwidth  # elements that are 16 bytes
    for at in range(first, end, LANES * ELEMENTS // per_vector):
        places, mask = tile(at, vectors, count, per_vector, as_vectors)
        w = tl.load(pointers(weight, places, W, as_vectors), mask, other=0.0).to(tl.float32)
        g = tl.load(pointers(grad, places, G, as_vectors), mask, other=0.0).to(tl.float32)
        unscaled = plain_gradient(g, w, plain)
        sums = add_in_order(sums, unscaled * unscaled, per_vector)
    return sums


@triton.jit
def sum_gradient_chunk(weight, grad, count, plain, P: tl.constexpr, G: tl.constexpr, has_masters: tl.constexpr):
    """The sum of squares of a chunk's plain gradient, twice, as `update_chunk` would return it."""
    W: tl.constexpr = tl.float32 if has_masters else P
    per_vector: tl.constexpr = 128 // W.primitive_bitwidth  # elements that are 16 bytes
    sums = tl.zeros([LANES], tl.float32)
    vectors = tl.where(allows_vectors(weight | grad), count // per_vector, 0)
    sums = sum_gradient_tiles(weight, grad, 0, vectors, vectors, count, sums, plain, W, G, True)
    rest, end = rest_of(vectors, count, per_vector)
    sums = sum_gradient_tiles(weight, grad, rest, end, vectors, count, sums, plain, W, G, False)
    return add_up_lanes(sums, sums)
