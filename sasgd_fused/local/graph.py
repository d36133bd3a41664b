"""Backward factors that follow from a network's graph and the second moments of its values."""

from __future__ import annotations

import warnings

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sasgd_fused.local.arguments import Inputs, unwrapped
from sasgd_fused.local.exported import export_graph
from sasgd_fused.local.flux import Division, Fluxes, total_of
from sasgd_fused.local.shares import (
    OutputShares,
    factors_of,
    find_model_layers,
    make_shares,
    no_path,
    with_gradients,
)
from sasgd_fused.local.still import still


def graph_factors(model: nn.Module, inputs: Inputs, gains: bool = True) -> dict[str, float]:
    """Finds the backward factor of every layer by following the output's flux backward through the network's graph.

    The flux of a unit z is φ = m E[z²], with m the mean square of its gradient and E the mean over the batch and all
    positions of its channel; about the mean of z if the network normalizes by the batch, which takes from a gradient
    what is common to the batch. At the output m = 1. A layer's share is the flux at its output, and
    m_b = n_B share_b / rows_b, as in `measured_factors`. Backward over an operator:

    - linear, convolution: φ(z_j) = Σ_i φ_i p_ij / Σ_k p_ik with p_ij = W_ij² E[z_j²], which keeps the sum.
    - a + b: φ(a) = φ E[a²] / (E[a²] + E[b²]), and b the rest.
    - what only moves elements (reshaping, concatenation, slices, padding): each takes its flux along.
    - batch normalization, dropout: unchanged.
    - any other: φ(z) = E[z²] (Jᵀu)², with J its Jacobian and u = ±√(φ/E[out²]) with random signs. Without `gains` this
      is scaled to keep the sum. ReLU has the gain π / (π - 1) after batch normalization, 1 where moments are about 0.

    So on a chain without `gains` every share is 1, which is ``factors="width"``. What is added to that are two things:
    how sums and concatenations divide the flux, and by how much each activation multiplies it.
    For the factors alone `measured_factors` is better: it costs little more and sees also that gradients at different
    positions, heads or branches are alike, which the graph takes as independent. That is much in attention, in
    squeeze-and-excitation and behind average pooling, where these factors may be further off than the width rule's.
    The literal product of equation (23), ``factors="product"``, is no rule for sums and concatenations at all.

    These factors are right as curvature, not better in training as far as was seen.

    The network is exported by torch.export in its own mode, run once, and each operator run backward once. Weights,
    gradients, buffers, flags and generators stay what they are.

    Args:
        model: the network; its output is one floating tensor. DistributedDataParallel and torch.compile around it are
            taken off for the while.
        inputs: one batch: a tensor, a tuple of positional arguments, or a mapping of named ones.
        gains: whether operators without a rule of their own change the flux.

    Returns:
        A mapping from names to m_b for ``ScaleAmendedSGD(parameter_groups(model), factors=...)``, with the geometric
        mean of the shares of the amended hidden layers 1.

    Warns:
        Of each kind of operator that took several tensors and has no rule of its own, with its first node.

    Raises:
        Exception: what the network's own forward raises for these inputs.
        RuntimeError: torch.export does not take the network, as where an ``if`` asks for the value of a tensor, or
            keeps a part of it whole, as torch.cond.
        TypeError: the output is not one floating tensor, `inputs` is none of the above, or `model` no module.
        ValueError: the inputs are empty or have NaN; a layer has no part in the output, or a share is zero or not
            finite, as may be for one sample in training mode with batch normalization: the message names it;
            parameters are sharded or quantized; something is on the meta device.
    """
    return factors_of(find_model_layers(model), graph_shares(model, inputs, gains))


def graph_shares(model: nn.Module, inputs: Inputs, gains: bool = True) -> OutputShares:
    """Finds the shares of `graph_factors`; they have no errors."""
    layers, inner = find_model_layers(model), unwrapped(model)
    flux_of = dict.fromkeys(layers.amended, 0.0)
    with still(inner), with_gradients(layers):
        graph = export_graph(inner, inputs)
        division = Division(graph, _normalizes_by_batch(inner), gains)
        pending: dict[fx.Node, Fluxes] = {graph.output: {0: division.moment(graph.output)}}
        reached: set[Tensor] = set()
        for node in reversed(graph.nodes):
            fluxes = pending.pop(node, None)
            if fluxes is None or node.op != "call_function":
                continue
            operands = [graph.weights[source] for source in node.all_input_nodes if source not in graph.active]
            for param in frozenset[Tensor]().union(*operands).intersection(flux_of):
                flux_of[param] += total_of(fluxes)
                reached.add(param)
            for source, place, flux in division.divide(node, fluxes):
                own = pending.setdefault(source, {})
                own[place] = own[place] + flux if place in own else flux
    for param, layer in layers.amended.items():
        if param not in reached:
            raise no_path(layer)
    if division.without_rule:
        named = ", ".join(f"{name} (first at {node.name})" for name, node in division.without_rule.items())
        warnings.warn(
            f"graph_factors: got operators on several tensors that have no rule: {named}; each tensor gets what it "
            "would from the operator alone. measured_factors needs no rules",
            stacklevel=3,
        )
    return make_shares(layers, flux_of)


def _normalizes_by_batch(model: nn.Module) -> bool:
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return any(module.training or module.running_mean is None for module in norms)
