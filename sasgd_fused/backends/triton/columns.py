"""What the host lays out for the kernels: columns of tables in device memory, and constants of both sides.

Chunks, lanes and the tree of sums are those of csrc/cuda/tables.h and csrc/cuda/chunk_loops.cuh.
"""

from __future__ import annotations

from collections.abc import Sequence

from triton.language import constexpr

from sasgd_fused.backends import device_state

CHUNK = constexpr(8192)  # elements whose sums of squares are kept together
LANES = constexpr(256)  # to which a chunk's elements are dealt out; each adds up its own in their order
WARPS = constexpr(8)  # of 32 lanes, whose sums are added up first
ELEMENTS = constexpr(8)  # of each lane that are on their way at a time
FAN_IN = constexpr(16)  # neighbours that the tree adds up at a time, in their order

# A row for each tensor, fixed in a plan.
NUMEL = constexpr(0)
FIRST_CHUNK = constexpr(1)
CHUNKS = constexpr(2)
FIRST_NODE = constexpr(3)  # of its part of the tree; the nodes follow all chunks in the table of sums
GROUP = constexpr(4)
LAYER = constexpr(5)  # or -1: not a layer
DTYPE = constexpr(6)  # of the parameter, whose master is float32: 0: float32, 1: bfloat16, 2: float16
TRAITS = constexpr(7)
TENSOR_WORDS = constexpr(8)

# Bits of TRAITS.
SCALED = constexpr(1)  # a layer whose gradient is amended
SHAPE_DECAY = constexpr(2)
TRACKED = constexpr(4)  # a layer whose norm follows its weights
STOCHASTIC = constexpr(8)  # its steps are counted, because random numbers are made from the count
VECTOR = constexpr(16)  # in the relative scale: the norm of the weights has no part in it

# A row of float64 for each layer, fixed in a plan.
ROWS = constexpr(0)
BACKWARD_FACTOR = constexpr(1)
EPS = constexpr(2)
LAYER_WORDS = constexpr(3)

# A row of addresses for each tensor; 0: no momentum buffer.
WEIGHT = constexpr(0)
MOMENTUM_BUFFER = constexpr(1)
ADDRESS_WORDS = constexpr(2)

# A gradient's word is its address, with this bit set if it is float32 while the parameter has 16 bits; 0: no gradient.
WIDE_GRADIENT = constexpr(1)

# A row for each parameter group: float64, and the address of a float32 that is the learning rate, or 0.
LR = constexpr(0)
MOMENTUM = constexpr(1)
DAMPENING = constexpr(2)
WEIGHT_DECAY = constexpr(3)
NESTEROV = constexpr(4)
MAXIMIZE = constexpr(5)
LR_ADDRESS = constexpr(6)
GROUP_WORDS = constexpr(7)

# Bits of a tensor's flags.
STARTED = constexpr(device_state.STARTED)
NORM_KEPT = constexpr(device_state.NORM_KEPT)
GRADIENT_KNOWN = constexpr(device_state.GRADIENT_KNOWN)


def tensor_rows(
    tensors: Sequence[tuple[int, int, int]], dtypes: Sequence[int], traits: Sequence[int], layers: Sequence[int]
) -> list[tuple[int, ...]]:
    """Returns the row of each tensor, which deals out chunks and, to layers, nodes.

    Args:
        tensors: those of `kernel.TritonKernel`.
        dtypes: dtype code of each parameter.
        traits: of each tensor.
        layers: the tensors that are layers, in the layers' order.
    """
    rows: list[tuple[int, ...]] = []
    first_chunk = first_node = 0
    layer_of = {tensor: layer for layer, tensor in enumerate(layers)}
    for t, (numel, group, _) in enumerate(tensors):
        chunks = chunks_of(numel)
        rows.append((numel, first_chunk, chunks, first_node, group, layer_of.get(t, -1), dtypes[t], traits[t]))
        first_chunk += chunks
        first_node += tree_nodes(chunks) if t in layer_of else 0
    return rows


def chunks_of(numel: int) -> int:
    """Returns how many chunks a tensor has."""
    return -(-numel // int(CHUNK.value))


def tree_nodes(chunks: int) -> int:
    """Returns how many nodes the tree over so many chunks has, see `sums.add_up_tree`."""
    nodes = 0
    while chunks > 1:
        chunks = -(-chunks // FAN_IN.value)
        nodes += chunks
    return nodes
