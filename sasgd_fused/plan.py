"""The fixed part of a step: tensors, layers and factors of one device; made once, remade when parameters change."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.factors import backward_factors, relative_factor, vector_factor
from sasgd_fused.layers import Layer, find_vectors, parameter_name
from sasgd_fused.memory import Neighbours, is_opaque, ranks_among
from sasgd_fused.options import Options
from sasgd_fused.parameters import takes_part
from sasgd_fused.precision import Precision, precision_of

Signature = tuple[torch.Size, torch.dtype, torch.device]
State = MutableMapping[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class PlannedLayer:
    """A layer as a backend sees it.

    Attributes:
        param: index into `StepPlan.params`.
        layer: its name, rows and columns.
        backward_factor: m_b; in the relative scale what takes its place, see `relative_factor`.
        scaled: whether the gradient is scaled (``amend`` is set and it is not a plain head).
        is_vector: whether it is scaled by its gradient alone (the relative scale).
        elements: of the whole parameter, where this plan has a part of it.
    """

    param: int
    layer: Layer
    backward_factor: float
    scaled: bool
    is_vector: bool = False
    elements: int = 0


@dataclass(frozen=True)
class StepPlan:
    """What the steps of one optimizer on one device have in common.

    Attributes:
        params: every parameter on the device that a step may update, in the order of the groups.
        names: their names, for messages.
        group_of: the parameter group of each.
        layers: the layers among them, input first.
        options: the optimizer's options.
        signatures: shape, dtype and device of each parameter.
        precisions: how each is stored.
        depth: B of the relative scale.
        overlaid: indices of the parameters that share memory with any other one of the optimizer.
        neighbours: the parameters of all plans.
    """

    device: torch.device
    params: list[Tensor]
    names: list[str]
    group_of: list[int]
    layers: list[PlannedLayer]
    options: Options
    signatures: list[Signature]
    precisions: list[Precision]
    depth: int = 1
    overlaid: frozenset[int] = frozenset()
    neighbours: Neighbours = field(default_factory=lambda: Neighbours([]))

    @cached_property
    def has_masters(self) -> bool:
        """Whether any parameter has a float32 master."""
        return any(precision.has_master for precision in self.precisions)

    @property
    def is_plain(self) -> bool:
        """Whether weights and momentum have the parameters' dtypes and are rounded to nearest."""
        return all(precision.is_plain for precision in self.precisions)

    def is_current(self, only: int | None = None) -> bool:
        """Returns whether the parameters, or one of them, have the shapes, dtypes and device that the plan is for."""
        if only is not None:
            return _signature(self.params[only]) == self.signatures[only]
        return [_signature(param) for param in self.params] == self.signatures

    def gather_gradients(self) -> list[Tensor | None]:
        """Takes each parameter's gradient, or None, after checking all of them.

        Raises:
            ValueError: a gradient is sparse, complex, integer, on another device, or of another shape; the message
                names the parameter.
        """
        return [self.gradient_of(index) for index in range(len(self.params))]

    def gradient_of(self, index: int) -> Tensor | None:
        """Takes one parameter's gradient, or None, after checking it.

        Raises:
            ValueError: as `gather_gradients` does.
        """
        param, name = self.params[index], self.names[index]
        grad = param.grad
        if grad is None:
            return None
        if grad.layout != torch.strided:
            raise ValueError(f"gradient of {name}: got layout {grad.layout}, want a dense tensor")
        if not grad.is_floating_point():
            raise ValueError(f"gradient of {name}: got {grad.dtype}, want a real floating-point dtype")
        if grad.device != param.device:
            raise ValueError(f"gradient of {name}: got device {grad.device}, want the parameter's, {param.device}")
        if grad.shape != param.shape:
            raise ValueError(
                f"gradient of {name}: got shape {tuple(grad.shape)}, want the parameter's, {tuple(param.shape)}"
            )
        return grad

    def check_state(self, state: State, active: Collection[int]) -> None:
        """Checks the momentum buffers and master weights of the parameters that are to be updated.

        Args:
            state: the optimizer's.
            active: the indices of these parameters.

        Raises:
            ValueError: one is sparse, or does not have its parameter's shape or device; the message names the
                parameter.
        """
        self._check_state(state, active, "momentum_buffer")
        if self.has_masters:
            self._check_state(state, active, "master_weight")

    def drop_masters(self, state: State) -> None:
        """Removes the masters of parameters that have none any more, as after model.float()."""
        for param, precision in zip(self.params, self.precisions, strict=True):
            if not precision.has_master and param in state:
                state[param].pop("master_weight", None)

    def _check_state(self, state: State, active: Collection[int], key: str) -> None:
        for index in active:
            param, name = self.params[index], self.names[index]
            kept = state.get(param, {}).get(key)
            if kept is None:
                continue
            if kept.shape != param.shape:
                raise ValueError(
                    f"{key} of {name}: got shape {tuple(kept.shape)}, want the parameter's, {tuple(param.shape)}"
                )
            if kept.device != param.device or kept.layout != torch.strided:
                raise ValueError(
                    f"{key} of {name}: got a {kept.layout} tensor on {kept.device}, "
                    f"want a dense one on the parameter's device, {param.device}"
                )


def make_plans(
    groups: Sequence[Mapping[str, Any]],
    options: Options,
    layers: Sequence[Layer],
    heads: Sequence[Tensor],
    output_width: float,
) -> list[StepPlan]:
    """Makes plans for all parameters that a step may update: one for every device, unless they differ in more.

    Parameters without memory of their own have a plan for themselves, and so have those of float64, which no kernel
    takes. Of several over the same memory each has a later plan than those before it, so that each is updated from what
    the others left.

    Args:
        groups: the optimizer's parameter groups.
        options: the optimizer's options.
        layers: of the groups, input first.
        heads: the parameters of the layers at the network's outputs.
        output_width: n_B.

    Raises:
        ValueError: a parameter cannot be updated, or the options are not for it.
    """
    heads_of_all = {id(head) for head in heads}
    scaled = {
        layer: layer.amend and not (options.head == "plain" and id(_param_of(groups, layer)) in heads_of_all)
        for layer in layers
    }
    depth = options.depth or max(sum(scaled.values()), 1)
    factors = _factors(groups, options, layers, output_width, depth)
    vectors = find_vectors(groups, layers) if options.is_relative else []

    entries: list[tuple[tuple[int, int], Tensor, str, Precision]] = []
    places = ((index, position) for index, group in enumerate(groups) for position in range(len(group["params"])))
    for number, (index, position) in enumerate(places):
        param, name = groups[index]["params"][position], parameter_name(groups[index], index, position)
        if takes_part(param, name):
            entries.append(((index, position), param, name, precision_of(param.dtype, options, name, number)))
    neighbours = Neighbours([param for _, param, _, _ in entries])
    ranks = ranks_among(neighbours.sharing)
    parts: dict[Any, list[int]] = {}
    for k, (_, param, _, _) in enumerate(entries):
        kind = ranks.get(k, 0), param.device, is_opaque(param), param.dtype == torch.float64
        parts.setdefault(kind, []).append(k)
    plans = []
    for chosen in sorted(parts.values(), key=lambda ks: ranks.get(ks[0], 0)):
        of_place = {entries[k][0]: i for i, k in enumerate(chosen)}
        params = [entries[k][1] for k in chosen]
        planned = [
            PlannedLayer(
                of_place[place], layer, factors[layer], scaled[layer], elements=params[of_place[place]].numel()
            )
            for layer in layers
            if (place := (layer.group, layer.position)) in of_place
            and params[of_place[place]].numel()  # else its memory is away
            and (layer.amend or not options.is_relative)  # else it is among the vectors
        ]
        planned += [
            PlannedLayer(
                of_place[place], vector, vector_factor(vector.rows, depth), True, is_vector=True, elements=vector.rows
            )
            for vector in vectors
            if (place := (vector.group, vector.position)) in of_place
        ]
        plans.append(
            StepPlan(
                device=params[0].device,
                params=params,
                names=[entries[k][2] for k in chosen],
                group_of=[entries[k][0][0] for k in chosen],
                layers=planned,
                options=options,
                signatures=[_signature(param) for param in params],
                precisions=[entries[k][3] for k in chosen],
                depth=depth,
                overlaid=frozenset(i for i, k in enumerate(chosen) if k in neighbours.sharing),
                neighbours=neighbours,
            )
        )
    return plans


def _factors(
    groups: Sequence[Mapping[str, Any]], options: Options, layers: Sequence[Layer], output_width: float, depth: int
) -> dict[Layer, float]:
    """Returns what each layer's gradient is divided by."""
    params = [_param_of(groups, layer) for layer in layers]
    if options.is_relative:
        factors = [relative_factor(layer, param.numel(), depth) for layer, param in zip(layers, params, strict=True)]
    else:
        factors = backward_factors(layers, params, options, output_width)
    return dict(zip(layers, factors, strict=True))


def _param_of(groups: Sequence[Mapping[str, Any]], layer: Layer) -> Tensor:
    param: Tensor = groups[layer.group]["params"][layer.position]
    return param


def _signature(param: Tensor) -> Signature:
    return param.shape, param.dtype, param.device
