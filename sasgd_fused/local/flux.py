"""How the flux at a node of a graph divides among the nodes from which it was computed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator

from sasgd_fused.local.exported import Graph, compute, operator_name

# The flux of each of a node's values, by their places.
Fluxes = dict[int, Tensor]

# Each element of the output is one of an input's.
_MOVES = re.compile(
    r"view|_unsafe_view|reshape|flatten|unflatten|permute|transpose|t|squeeze|unsqueeze|slice|select|narrow|split|unfold|"
    r"split_with_sizes|chunk|unbind|diagonal|expand|repeat|repeat_interleave|roll|flip|index|index_select|gather|cat|"
    r"stack|slice_scatter|select_scatter|constant_pad_nd|pad|masked_fill|where|tril|triu|pixel_shuffle|"
    r"upsample_nearest\dd|copy|clone|contiguous|alias|lift_fresh_copy|to|_to_copy"
)
_SUMS = re.compile(r"add|sub")
_WEIGHTED_SUMS = re.compile(r"linear|conv\dd|conv_transpose\dd|convolution")
# For m samples batch normalization has the gain 1 - 2 / m.
_UNCHANGED = re.compile(r".*batch_norm.*|(native_|feature_)?dropout")
# A deviation from the mean of so few is none.
_ROUNDINGS = 100
_CHANNELS_BEFORE = re.compile(r"(?:conv|conv_transpose|(?:adaptive_)?(?:avg|max)_pool)(\d)d.*")
_CHANNELS_SECOND = re.compile(r".*(batch|group|instance)_norm.*|convolution")
_CHANNELS_LAST = re.compile(r"linear|.*layer_norm.*|.*rms_norm.*|embedding|.*mm|matmul|.*attention.*")


class Division:
    """Divides the flux of nodes; see `graph_factors` for the rules.

    Args:
        graph: the network.
        centred: whether moments are about the mean.
        gains: whether an operator without a rule of its own changes the flux by its gain, or hands on all of it.

    Attributes:
        without_rule: of each operator that took several tensors and had no rule, the first node.
    """

    def __init__(self, graph: Graph, centred: bool, gains: bool) -> None:
        self.without_rule: dict[str, fx.Node] = {}
        self._graph = graph
        self._centred = centred
        self._gains = gains
        self._axes = _channel_axes(graph)
        self._generator = torch.Generator().manual_seed(0)

    def moment(self, node: fx.Node, place: int = 0) -> Tensor:
        """Returns the second moment of a node's value, of each channel over all else, in the shape of the value."""
        value: Tensor = _parts(self._graph.values[node])[place]
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        if not value.dim():
            return torch.zeros_like(value)
        axis = self._axes.get(node, -1) % value.dim()
        others = [dim for dim in range(value.dim()) if dim != axis] or [0]
        if not self._centred:
            return value.square().mean(others, keepdim=True).expand(value.shape)
        mean = value.mean(others, keepdim=True)
        variance = (value - mean).square().mean(others, keepdim=True)
        rounding = _ROUNDINGS * torch.finfo(value.dtype).eps * mean
        return torch.where(variance > rounding.square(), variance, 0).expand(value.shape)

    def divide(self, node: fx.Node, fluxes: Fluxes) -> list[tuple[fx.Node, int, Tensor]]:
        """Returns what each node that the inputs have a part in gets of a node's flux: node, place and flux."""
        name = operator_name(node)
        if isinstance(node.target, HigherOrderOperator):
            raise RuntimeError(
                f"model: torch.export keeps a part of it whole ({name} at {node.name}); want measured_factors, which "
                "needs no graph"
            )
        sources = [source for source in node.all_input_nodes if source in self._graph.active]
        if name == "getitem":
            return [(sources[0], node.args[1], fluxes[0])]  # type: ignore[list-item]
        sources = [source for source in sources if _is_floating(self._graph.values[source])]
        if not sources:
            return []
        if _UNCHANGED.fullmatch(name):
            parts = {sources[0]: fluxes[0]} if 0 in fluxes else {}
        elif _SUMS.fullmatch(name):
            parts = self._divide_sum(node, fluxes[0])
        elif _WEIGHTED_SUMS.fullmatch(name) and node.args[0] in sources and len(sources) == 1:
            parts = self._divide_weighted_sum(node, sources[0], fluxes[0])
        elif _MOVES.fullmatch(name):
            parts = self._pull_back(node, sources, fluxes)
        else:
            parts = self._divide_by_gain(node, sources, fluxes)
        if not self._gains:
            parts = _conserved(parts, fluxes)
        return [(source, 0, part) for source, part in parts.items()]

    def _divide_sum(self, node: fx.Node, flux: Tensor) -> dict[fx.Node, Tensor]:
        """Divides by the operands' moments."""
        operands = [arg for arg in node.args[:2] if isinstance(arg, fx.Node) and arg in self._graph.active]
        moments = [self.moment(operand) for operand in operands]
        if len(operands) == 2:
            moments[1] = moments[1] * float(node.kwargs.get("alpha", 1)) ** 2  # type: ignore[arg-type]
        total = torch.stack([moment.expand(flux.shape) for moment in moments]).sum(0)
        parts: dict[fx.Node, Tensor] = {}
        for operand, moment in zip(operands, moments, strict=True):
            share = torch.where(total > 0, moment / total, 1 / len(operands))
            part = (flux * share).sum_to_size(moment.shape)
            parts[operand] = parts[operand] + part if operand in parts else part
        return parts

    def _divide_weighted_sum(self, node: fx.Node, source: fx.Node, flux: Tensor) -> dict[fx.Node, Tensor]:
        """Divides the flux of output i in the proportion of W_ij² E[z_j²], which the operator itself computes."""
        args: Any = fx.node.map_arg(node.args, self._graph.values.__getitem__)
        _, weight, *rest = args
        without_bias = [None, *rest[1:]] if rest else []
        moment = self.moment(source).contiguous().requires_grad_()
        operator: Any = node.target
        with torch.enable_grad():
            summed = operator(moment, weight.to(moment.dtype).square(), *without_bias, **node.kwargs)
        ratio = torch.where(summed > 0, flux / summed, 0).detach()
        (pulled,) = torch.autograd.grad(summed, [moment], ratio)
        return {source: pulled * moment.detach()}

    def _divide_by_gain(self, node: fx.Node, sources: list[fx.Node], fluxes: Fluxes) -> dict[fx.Node, Tensor]:
        """Takes the signs' pull-back, squared: the second moment of a gradient whose elements are independent."""
        if len(sources) > 1:
            self.without_rule.setdefault(operator_name(node), node)
        signed: Fluxes = {}
        for place, flux in fluxes.items():
            moment = self.moment(node, place)
            bits = torch.randint(0, 2, flux.shape, generator=self._generator).to(flux.device)
            signed[place] = (2 * bits - 1) * torch.where(moment > 0, flux / moment, 0).sqrt()
        pulled = self._pull_back(node, sources, signed)
        return {source: part.square() * self.moment(source) for source, part in pulled.items()}

    def _pull_back(
        self, node: fx.Node, sources: list[fx.Node], cotangents: Mapping[int, Tensor]
    ) -> dict[fx.Node, Tensor]:
        """Returns Jᵀ times the cotangents, for the Jacobian J of this operator alone at each source."""
        values = self._graph.values
        leaves = {source: values[source].detach().requires_grad_() for source in sources}
        with torch.enable_grad():
            results = _parts(compute(node, lambda source: leaves.get(source, values[source])))
        pairs = [(results[place], cotangent) for place, cotangent in cotangents.items() if results[place].requires_grad]
        if not pairs:
            return {}
        outputs, gradients = (
            [result for result, _ in pairs],
            [cotangent.to(result.dtype) for result, cotangent in pairs],
        )
        try:
            pulled = torch.autograd.grad(outputs, list(leaves.values()), gradients, allow_unused=True)
        except RuntimeError as error:
            raise RuntimeError(
                f"model: {operator_name(node)} at {node.name} cannot be run backward alone ({error}); want "
                "measured_factors, which needs no graph"
            ) from error
        wide = {source: part for source, part in zip(sources, pulled, strict=True) if part is not None}
        return {source: part.to(torch.promote_types(part.dtype, torch.float32)) for source, part in wide.items()}


def total_of(fluxes: Fluxes) -> float:
    """Returns the sum of a node's flux over all units."""
    return sum(float(flux.sum(dtype=torch.float64)) for flux in fluxes.values())


def _conserved(parts: dict[fx.Node, Tensor], fluxes: Fluxes) -> dict[fx.Node, Tensor]:
    """Scales the parts so that their sum is that of the flux."""
    total = total_of(dict(enumerate(parts.values())))
    return {source: part * (total_of(fluxes) / total) for source, part in parts.items()} if total > 0 else parts


def _channel_axes(graph: Graph) -> dict[fx.Node, int]:
    """Returns the axis of the channels of each node that the inputs have a part in, counted from the last."""
    axes: dict[fx.Node, int] = {}
    for node in graph.nodes:
        value = _parts(graph.values[node])[0]
        if node in graph.active and isinstance(value, Tensor) and value.dim():
            axes[node] = _channel_axis(node, value, axes, graph.values)
    return axes


def _channel_axis(node: fx.Node, value: Tensor, axes: dict[fx.Node, int], values: dict[fx.Node, Any]) -> int:
    name = operator_name(node)
    if match := _CHANNELS_BEFORE.fullmatch(name):
        return -1 - int(match[1])
    if _CHANNELS_SECOND.fullmatch(name):
        return 1 - value.dim()
    if _CHANNELS_LAST.fullmatch(name):
        return -1
    for source in node.all_input_nodes:
        before = _parts(values[source])[0]
        if source in axes and before.dim() == value.dim():
            if name not in ("permute", "transpose", "t"):
                return axes[source]
            sizes = [1] * value.dim()
            sizes[axes[source]] = 2
            moved = compute(node, lambda _, sizes=sizes: torch.empty(sizes))  # type: ignore[misc]
            return list(moved.shape).index(2) - value.dim()
    return 1 - value.dim() if value.dim() in (2, 4, 5) else -1


def _parts(value: Any) -> Any:
    return value if isinstance(value, (tuple, list)) else (value,)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
