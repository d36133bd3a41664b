"""Backward factors, by which each layer's gradient is divided, and the scales that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sasgd_fused.layers import Layer
from sasgd_fused.options import Options


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


def _mapped_factor(mapping: Mapping[Any, float], layer: Layer, param: Tensor) -> float:
    factor = mapping.get(param, mapping.get(layer.name))
    if factor is None:
        raise ValueError(f"factors: the mapping has no entry for {layer.name}, want a backward factor for every layer")
    if not (isinstance(factor, (int, float)) and factor > 0 and math.isfinite(factor)):
        raise ValueError(f"factors[{layer.name!r}]: got {factor!r}, want a positive finite number")
    return float(factor)
