"""Sums of squares in an order that no layout, grid or device can change: the order of the CUDA backend.

The compiler chooses the order within `tl.sum`, except where there are only two to add.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sasgd_fused.backends.triton.columns import ELEMENTS, FAN_IN, LANES, WARPS


@triton.jit
def add_in_order(sums, squares, per_vector: tl.constexpr):
    """Adds the squares of a tile of vectors to the float32 sums of their lanes, one after another."""
    batches: tl.constexpr = ELEMENTS // per_vector
    of_lanes = squares.reshape(batches, LANES, per_vector).permute(1, 0, 2).reshape(LANES, 4, 2)
    even, odd = tl.split(of_lanes)
    s04, s26 = tl.split(even.reshape(LANES, 2, 2))
    s15, s37 = tl.split(odd.reshape(LANES, 2, 2))
    s0, s4 = tl.split(s04)
    s1, s5 = tl.split(s15)
    s2, s6 = tl.split(s26)
    s3, s7 = tl.split(s37)
    return sums + s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7


@triton.jit
def add_up_lanes(read, written):
    """Adds up both sums of a chunk's lanes in float64, by halves: the lanes of each warp, then the warps."""
    sums = tl.join(read.to(tl.float64), written.to(tl.float64)).reshape(WARPS, 2, 16, 2)
    sums = tl.sum(sums, 1).reshape(WARPS, 2, 8, 2)
    sums = tl.sum(sums, 1).reshape(WARPS, 2, 4, 2)
    sums = tl.sum(sums, 1).reshape(WARPS, 2, 2, 2)
    sums = tl.sum(sums, 1).reshape(WARPS, 2, 2)
    sums = tl.sum(sums, 1).reshape(2, 4, 2)
    sums = tl.sum(sums, 0).reshape(2, 2, 2)
    sums = tl.sum(sums, 0).reshape(2, 2)
    return tl.sum(sums, 0)


@triton.jit
def load_pair(sums, first, place, count):
    """Loads both sums of some of a tensor's chunks or nodes; zeros from the last on."""
    return tl.load(sums + (first + place) * 2 + tl.arange(0, 2)[None, :], mask=place < count, other=0.0)


@triton.jit
def add_up_tree(sums, first, count, node):
    """Adds up the sums of a tensor's chunks, level by level; returns where the root is.

    Args:
        sums: pairs of float64, of all chunks and then of all nodes.
        first: the tensor's first chunk.
        count: its chunks.
        node: where the nodes of its tree begin.
    """
    nodes_at_a_time: tl.constexpr = 128
    while count > 1:
        nodes = tl.cdiv(count, FAN_IN)
        for begin in range(0, nodes, nodes_at_a_time):
            n = (begin + tl.arange(0, nodes_at_a_time))[:, None]
            total = tl.zeros([nodes_at_a_time, 2], tl.float64)
            for child in range(0, FAN_IN, 8):
                # Loads before additions, in which order the assembler leaves them: so several are under way at once.
                place = n * FAN_IN + child
                s0 = load_pair(sums, first, place, count)
                s1 = load_pair(sums, first, place + 1, count)
                s2 = load_pair(sums, first, place + 2, count)
                s3 = load_pair(sums, first, place + 3, count)
                s4 = load_pair(sums, first, place + 4, count)
                s5 = load_pair(sums, first, place + 5, count)
                s6 = load_pair(sums, first, place + 6, count)
                s7 = load_pair(sums, first, place + 7, count)
                total = total + s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7
            tl.store(sums + (node + n) * 2 + tl.arange(0, 2)[None, :], total, mask=n < nodes)
        tl.debug_barrier()  # the next level reads this one
        first = node
        node += nodes
        count = nodes
    return first
