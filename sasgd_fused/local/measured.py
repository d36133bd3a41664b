"""Backward factors that are measured: what a random direction at the output becomes at each weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sasgd_fused.local.arguments import Inputs, arguments_of, unwrapped
from sasgd_fused.local.shares import (
    ModelLayers,
    OutputShares,
    check_output,
    factors_of,
    find_model_layers,
    make_shares,
    no_path,
    sum_squares,
    with_gradients,
)
from sasgd_fused.local.still import still
from sasgd_fused.options import is_positive_int


def measured_factors(
    model: nn.Module,
    inputs: Inputs,
    probes: int = 16,
    seed: int = 0,
    output: Callable[[Any], Tensor] | None = None,
) -> dict[str, float]:
    """Measures the backward factor of every layer, whatever the network is made of.

    m_b = n_B share_b / rows_b, with the shares of `output_shares`. ``factors="width"`` takes every share as 1, which is
    the paper's equation (23) on a chain. Shares are far from 1 where sums and concatenations split the gradient, and
    where activations and pooling multiply it from layer to layer.

    The layers keep the same rates in the geometric mean, so that a learning rate found with ``"width"`` is a place to
    start. Factors are those of the weights and inputs given: take them again when they are to follow training. On
    several ranks all have to use the same mapping. Of layers that `parameter_groups` does not amend the mapping has
    the width rule's entry, because the optimizer wants one; they take the plain step.

    These factors are right as curvature. In training they were not seen to be better than ``"width"``.

    The cost is that of `output_shares`: about 2/3 `probes` training steps.

    Args:
        model: the network; DataParallel, DistributedDataParallel and torch.compile around it are taken off for the
            while.
        inputs: one batch: a tensor, a tuple of positional arguments, or a mapping of named ones.
        probes: how many random directions are drawn. A factor's relative error falls with their root.
        seed: of the draws.
        output: takes the floating tensor f out of what the network returns, where it returns something else.

    Returns:
        A mapping from names to m_b, for an optimizer that knows the names of its parameters.

    Raises:
        TypeError, ValueError, RuntimeError: as `output_shares`.

    Example:
        >>> factors = measured_factors(model, inputs)
        >>> optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.1, factors=factors)
    """
    return factors_of(find_model_layers(model), output_shares(model, inputs, probes, seed, output))


def output_shares(
    model: nn.Module,
    inputs: Inputs,
    probes: int = 16,
    seed: int = 0,
    output: Callable[[Any], Tensor] | None = None,
) -> OutputShares:
    """Measures what share each layer has of the curvature of the network's output.

    With f the output, of N examples, n_B the output units of the network (the rows of its head, of several the
    largest), S_b = ‖W_b‖² the sum of the squares of a layer's weights, and v random signs in f's shape, E vvᵀ = I::

        t_b     = E‖∂(vᵀf)/∂W_b‖² / (N · elements of W_b)
        share_b = S_b t_b / c

    t_b is the mean over W_b of the diagonal of the Gauss-Newton matrix of f; by c the geometric mean of the shares of
    the amended hidden layers is 1. A layer scale s_b ∝ 1 / t_b moves the output equally much by every weight. In the
    notation of the paper it is S_b / rows_b / m_b, so that m_b = n_B share_b / rows_b.

    The network is run once in its own mode, with dropout off and running statistics held (`still`), then backward
    `probes` times. That takes as long as about 2/3 `probes` training steps, and as much memory as one, with one more
    gradient. Frozen weights are measured too. Weights, gradients, buffers, flags and generators stay what they are.

    Args:
        model: the network; DataParallel, DistributedDataParallel and torch.compile around it are taken off for the
            while.
        inputs: one batch: a tensor, a tuple of positional arguments, or a mapping of named ones.
        probes: how many v are drawn. A layer's relative error falls with their root; `error` tells it.
        seed: of the draws.
        output: takes the floating tensor f out of what the network returns, where it returns something else.

    Returns:
        A row for every amended layer, input first; prints as a table.

    Raises:
        TypeError: the output is not one floating tensor, `inputs` is none of the above, or `model` no module.
        ValueError: there is no gradient path from the output to a layer, or a share is zero or not finite: the message
            names it; parameters are sharded or quantized; something is on the meta device; inputs are empty or have
            NaN; `probes` is not a positive integer.
        RuntimeError: the network's tensors, or this call, belong to ``torch.inference_mode``.
    """
    if not is_positive_int(probes):
        raise ValueError(f"probes: got {probes!r}, want a positive integer")
    layers = find_model_layers(model)
    inner, (args, kwargs) = unwrapped(model), arguments_of(inputs)
    with still(inner), with_gradients(layers), torch.enable_grad():
        result = inner(*args, **kwargs)
        result = check_output(result if output is None else output(result), "one floating tensor; `output=` picks it")
        generator = torch.Generator(result.device).manual_seed(seed)
        traces = torch.stack([_trace(result, layers, generator) for _ in range(probes)])
    means = traces.mean(0).tolist()
    deviations = (traces.var(0, correction=0) / max(probes - 1, 1)).sqrt().tolist()  # of the means
    curvatures, errors = {}, {}
    for param, mean, deviation in zip(layers.amended, means, deviations, strict=True):
        weight = sum_squares(param) / param.numel()
        curvatures[param], errors[param] = weight * mean, weight * deviation
    return make_shares(layers, curvatures, errors if probes > 1 else None)


def _trace(result: Tensor, layers: ModelLayers, generator: torch.Generator) -> Tensor:
    """Returns ‖∂(vᵀf)/∂W_b‖² of every amended layer for one v."""
    bits = torch.randint(0, 2, result.shape, generator=generator, device=result.device)
    signs = (2 * bits - 1).to(result.dtype)
    gradients: Sequence[Tensor | None] = [None] * len(layers.amended)
    if result.requires_grad:
        gradients = torch.autograd.grad(result, list(layers.amended), signs, retain_graph=True, allow_unused=True)
    squares = []
    for layer, gradient in zip(layers.amended.values(), gradients, strict=True):
        if gradient is None:
            raise no_path(layer)
        squares.append(sum_squares(gradient))
    return torch.tensor(squares, dtype=torch.float64)
