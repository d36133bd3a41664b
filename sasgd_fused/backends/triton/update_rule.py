"""The arithmetic of a step in Triton: of one element, and of a layer's scale.

The twin of csrc/update_rule.h and csrc/layer_scale.h, which Triton cannot include. Nothing is contracted into fused
multiply-adds (the launches say so), so that both give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sasgd_fused import factors

CARRIED_SHARE = tl.constexpr(factors.CARRIED_SHARE)
LARGEST_SCALE = tl.constexpr(factors.LARGEST_SCALE)


@triton.jit
def amended_gradient(grad, weight, grad_scale, decay_scale, decays):
    """What is to be descended: g = s_b grad + d_b W. Without decay the weight has no part in it: it may be infinite."""
    scaled = grad_scale * grad
    return tl.where(decays, scaled + decay_scale * weight, scaled)


@triton.jit
def plain_gradient(grad, weight, plain):
    """The gradient with decay as a part of it, before any scale: what the squared norms q_b are taken of."""
    grad_scale, weight_decay, decays = plain
    return amended_gradient(grad, weight, grad_scale, weight_decay, decays)


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
def mix(x):
    """SplitMix64's finalizer, of uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def random_key(stream, rounding_step, offset):
    """Both halves of the key of a step and of all elements whose places have the high 32 bits of this int64 offset."""
    of_step = mix(stream.to(tl.uint64, bitcast=True) + rounding_step.to(tl.uint64, bitcast=True))
    key = mix(of_step + (offset.to(tl.uint64, bitcast=True) >> 32))
    return key.to(tl.uint32), (key >> 32).to(tl.uint32)


@triton.jit
def random_bits(place, key):
    """32 random bits for each element, from the low 32 bits of its place, a uint32."""
    low, high = key
    x = (place ^ low) * 0x85EBCA6B
    x = ((x ^ (x >> 16)) ^ high) * 0xC2B2AE35
    x = (x ^ (x >> 15)) * 0x27D4EB2F
    return x ^ (x >> 16)


@triton.jit
def rounded(values, T: tl.constexpr, random):
    """As a dtype: to nearest, or to bfloat16 by the low 16 random bits if there are any; NaN stays NaN."""
    if random is None or not T.is_bf16():
        return values.to(T)
    else:
        bits = values.to(tl.uint32, bitcast=True)
        upper = tl.where(values != values, (bits >> 16) | 0x40, (bits + (random & 0xFFFF)) >> 16)
        return upper.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def floored_row_norm_sq(row_norm_sq, eps):
    """‖W‖²_{2,μ}, or eps if that is more; NaN stays NaN."""
    return tl.where(row_norm_sq < eps, eps, row_norm_sq)


@triton.jit
def layer_scale(row_norm_sq, backward_factor, eps):
    """1 / m / m_{b,W} with m_{b,W} = 1 / ‖W‖²_{2,μ}, equations (22) and (24)."""
    return floored_row_norm_sq(row_norm_sq, eps) / backward_factor


@triton.jit
def relative_scale(row_norm_sq, backward_factor, gradient_norm_sq, eps, is_vector):
    """s_b = √(max(‖W_b‖²_{2,μ}, eps) / (m_b v_b)); of a vector √(1 / (m v)).

    0 for a gradient of zeros, which v_b = 0 means where it is known. A vanishing gradient is not scaled by infinity.
    """
    is_zero = gradient_norm_sq == 0
    divisor = tl.where(is_zero, 1.0, backward_factor * gradient_norm_sq)
    scale = tl.sqrt(tl.where(is_vector, 1.0, floored_row_norm_sq(row_norm_sq, eps)) / divisor)
    scale = tl.where(scale > LARGEST_SCALE, LARGEST_SCALE, scale)
    return tl.where(is_zero, 0.0, scale)


@triton.jit
def next_gradient_norm_sq(before, measured):
    """v_b after a step: a running mean of q_b; q_b itself if v_b was not known; v_b if q_b is 0 or not finite."""
    kept = tl.full([], CARRIED_SHARE, tl.float64)
    mean = kept * before + (1.0 - kept) * measured
    counts = (measured - measured == 0) & (measured != 0)
    return tl.where(counts, tl.where(before == 0, measured, mean), before)


@triton.jit
def decay_scale(scale, backward_factor, weight_decay, shape_decay):
    """d_b: decay first, then the scale (footnote 5), or the shape's part of the scale alone."""
    return tl.where(shape_decay, weight_decay / backward_factor, scale * weight_decay)


@triton.jit
def same_bits(a, b):
    """Whether a carried sum of squares is that of the weights; all kinds of NaN are one."""
    return (a.to(tl.int64, bitcast=True) == b.to(tl.int64, bitcast=True)) | ((a != a) & (b != b))
