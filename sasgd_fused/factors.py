"""The factors by which each gradient is divided, which follow from shapes, and the scales that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.layers import Layer
from sasgd_fused.options import Options

# Of the relative scale. β, by which the squared norms of the gradients are averaged over the steps.
CARRIED_SHARE = 0.9
# What one step may change of a vector, over the root of B and for lr = 1: its root mean square.
VECTOR_SHARE = 0.03
# Of float32: a vanishing gradient is not scaled by infinity.
LARGEST_SCALE = float(torch.finfo(torch.float32).max)


def backward_factors(
    layers: Sequence[Layer], params: Sequence[Tensor], options: Options, output_width: float
) -> list[float]:
    """Gives the factor m_b at the output of every layer.

    - ``"width"``: m_b = n_B / rows_b.
    - ``"product"``: equation (23), m_{b-1} = m_b · m_{b,z} with m_{b,z} = rows_b / columns_b, from m_B = 1, or from
      m_B = output_width / rows_B where `output_width` was given.
    - a mapping from a parameter or its name to m_b.

    Args:
        layers: all layers, input first.
        params: the parameter of each layer.
        options: the optimizer's options.
        output_width: n_B, the units at the network's output.

    Raises:
        ValueError: the mapping lacks a layer, or has a factor that is not a positive finite number.

    Source: Zhang, Chen, Liu (2018), Algorithm 2 and equations (22)-(24).
    """
    rule = options.factors
    if isinstance(rule, Mapping):
        return [_mapped_factor(rule, layer, param) for layer, param in zip(layers, params, strict=True)]
    if rule == "width":
        return [output_width / layer.rows for layer in layers]
    factors: list[float] = []
    m = 1.0
    if layers and options.output_width is not None:
        m = output_width / layers[-1].rows
    for layer in reversed(layers):
        factors.append(m)
        m = m * (layer.rows / layer.columns)  # (23), with m_{b,z} = rows / columns by (24)
    return factors[::-1]


def layer_scale(row_norm_sq: float, backward_factor: float, eps: float) -> float:
    """s_b = 1 / m_b / m_{b,W} = max(‖W_b‖²_{2,μ}, eps) / m_b, equations (22) and (24)."""
    return max(row_norm_sq, eps) / backward_factor


def decay_scale(scale: float, backward_factor: float, weight_decay: float, decay: str) -> float:
    """d_b: s_b · λ for ``decay="amended"`` (the paper's footnote 5), λ / m_b for ``decay="shape"``."""
    if weight_decay == 0:  # whatever the scale: it may be infinite
        return 0.0
    return scale * weight_decay if decay == "amended" else weight_decay / backward_factor


def relative_factor(layer: Layer, elements: int, depth: int) -> float:
    """m_b = f_b B / rows_b, which takes the place of the backward factor in the relative scale.

    Args:
        layer: b.
        elements: of W_b, the whole of it; f_b = elements / rows_b are the inputs of an output unit.
        depth: B, how many layers are scaled.
    """
    return elements / layer.rows * depth / layer.rows


def vector_factor(elements: int, depth: int) -> float:
    """The same for a vector, m = B / (0.03² n), so that s = 0.03 √n / √(B v)."""
    return depth / (VECTOR_SHARE**2 * elements)


def relative_scale(row_norm_sq: float, factor: float, gradient_norm_sq: float, eps: float, is_vector: bool) -> float:
    """s_b = ‖W_b‖ / √(f_b B v_b) = √(max(‖W_b‖²_{2,μ}, eps) / (m_b v_b)); for a vector √(1 / (m v)).

    Args:
        row_norm_sq: ‖W_b‖²_{2,μ}.
        factor: m_b, from `relative_factor` or `vector_factor`.
        gradient_norm_sq: v_b; 0 only if the gradient is zero throughout, which then is not scaled up to anything.
        eps: floor of ‖W_b‖²_{2,μ}.
        is_vector: whether the weights' norm has no part in it.
    """
    if gradient_norm_sq == 0:
        return 0.0
    numerator = 1.0 if is_vector else max(row_norm_sq, eps)
    return min(math.sqrt(numerator / (factor * gradient_norm_sq)), LARGEST_SCALE)


def next_gradient_norm_sq(before: float, measured: float) -> float:
    """v_b after a step: β v_b + (1 - β) q_b; q_b itself if v_b was not known; v_b if q_b is 0 or not finite.

    Zeros do not count, or the scale would grow by 5 % with each, and the first gradient after them be scaled by that.

    Args:
        before: v_b; 0 if it is not known.
        measured: q_b, the squared norm of the step's gradient.
    """
    if measured == 0 or not math.isfinite(measured):
        return before
    return CARRIED_SHARE * before + (1 - CARRIED_SHARE) * measured if before else measured


def _mapped_factor(mapping: Mapping[Any, float], layer: Layer, param: Tensor) -> float:
    factor = mapping.get(param, mapping.get(layer.name))
    if factor is None:
        raise ValueError(f"factors: the mapping has no entry for {layer.name}, want a backward factor for every layer")
    if not (isinstance(factor, (int, float)) and factor > 0 and math.isfinite(factor)):
        raise ValueError(f"factors[{layer.name!r}]: got {factor!r}, want a positive finite number")
    return float(factor)
