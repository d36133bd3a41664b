"""The arithmetic of a step in Triton: of one element, and of a block's scale.

The twin of csrc/update_rule.h and csrc/layer_scale.h, which Triton cannot include. Nothing is contracted into fused
multiply-adds (the launches say so), so that both give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def amended_gradient(grad, weight, grad_scale, decay_scale):
    """What is to be descended: g = s_b grad + d_b W."""
    return grad_scale * grad + decay_scale * weight


@triton.jit
def next_momentum(g, momentum_buffer, carry, share):
    """The momentum buffer: buf = momentum * buf + (1 - dampening) * g."""
    return carry * momentum_buffer + share * g


@triton.jit
def direction(g, momentum_buffer, momentum, has_momentum, nesterov):
    """What the weights move along: g, buf, or g + momentum * buf."""
    moved = tl.where(nesterov, g + momentum * momentum_buffer, momentum_buffer)
    return tl.where(has_momentum, moved, g)


@triton.jit
def next_weight(weight, along, lr):
    """W = W - lr * direction."""
    return weight - lr * along


@triton.jit
def layer_scale(row_norm_sq, backward_factor, eps):
    """1 / m / m_{b,W} with m_{b,W} = 1 / ‖W‖²_{2,μ}, equations (22) and (24); NaN stays NaN."""
    return tl.where(row_norm_sq < eps, eps, row_norm_sq) / backward_factor


@triton.jit
def decay_scale(scale, backward_factor, weight_decay, shape_decay):
    """d_b: decay first, then the scale (footnote 5), or the shape's part of the scale alone."""
    return tl.where(shape_decay, weight_decay / backward_factor, scale * weight_decay)


@triton.jit
def same_bits(a, b):
    """Whether a carried sum of squares is that of the weights; all kinds of NaN are one."""
    return (a.to(tl.int64, bitcast=True) == b.to(tl.int64, bitcast=True)) | ((a != a) & (b != b))
