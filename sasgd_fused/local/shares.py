"""What each layer has of the output's curvature: the shares, what makes backward factors of them, and their table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sasgd_fused.groups import parameter_groups
from sasgd_fused.layers import Layer, find_layers
from sasgd_fused.local.arguments import check_model
from sasgd_fused.network import find_outputs
from sasgd_fused.shards import is_sharded
from sasgd_fused.text_table import aligned, as_html, cell


class ModelLayers(NamedTuple):
    """The layers of a model, as an optimizer that is made from ``parameter_groups(model)`` has them.

    Attributes:
        amended: the amended layer of each parameter that has one, input first.
        plain: the other layers, which take the plain step.
        heads: the parameters of the layers at the outputs.
        output_width: n_B, the rows of the head, of several the largest.
    """

    amended: dict[Tensor, Layer]
    plain: list[Layer]
    heads: set[Tensor]
    output_width: float


@dataclass(frozen=True)
class ShareRow:
    """The share of one layer.

    Attributes:
        name: the parameter's name.
        rows: output units.
        columns: input units; of a convolution its input channels (of one group), without the kernel.
        is_head: whether it gives an output.
        share: of the output's curvature. The geometric mean of the hidden layers' is 1.
        error: its standard error; None where it was not sampled.
        backward_factor: m_b = n_B share_b / rows_b.
        width_factor: n_B / rows_b, which is ``factors="width"``.
    """

    name: str
    rows: int
    columns: int
    is_head: bool
    share: float
    error: float | None
    backward_factor: float
    width_factor: float


class OutputShares(tuple[ShareRow, ...]):
    """A tuple of `ShareRow`, input first, that prints as a table, in a notebook too."""

    def __repr__(self) -> str:
        return aligned(self._table())

    def _repr_html_(self) -> str:
        """Returns the table as HTML, which notebooks show."""
        return as_html(self._table())

    def _table(self) -> list[list[str]]:
        columns = [field.name for field in fields(ShareRow) if field.name != "is_head"]
        lines = [[cell(getattr(row, column)) for column in columns] + ["head" if row.is_head else ""] for row in self]
        return [[*columns, ""], *lines]


def find_model_layers(model: nn.Module) -> ModelLayers:
    """Finds a model's layers by `parameter_groups`, whose warnings are left to the call that makes the optimizer.

    Raises:
        TypeError, ValueError, RuntimeError: as `check_model`; ValueError too where the model has no amended weights,
            or sharded ones.
    """
    check_model(model)
    if any(is_sharded(param) for param in model.parameters()) or any(
        type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()
    ):
        raise ValueError(f"model: got {type(model).__name__} with sharded parameters, want it before it is sharded")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = parameter_groups(model)
    groups = [
        {
            **group,
            "params": [param for _, param in group["params"]],
            "param_names": [name for name, _ in group["params"]],
        }
        for group in made
    ]
    layers = {groups[layer.group]["params"][layer.position]: layer for layer in find_layers(groups)}
    amended = {param: layer for param, layer in layers.items() if layer.amend}
    if not amended:
        raise ValueError(f"model: got {type(model).__name__} without amended weights, want at least one")
    heads, output_width = find_outputs(layers, groups, None)
    return ModelLayers(amended, [layer for layer in layers.values() if not layer.amend], set(heads), output_width)


def make_shares(
    layers: ModelLayers, curvatures: Mapping[Tensor, float], errors: Mapping[Tensor, float] | None = None
) -> OutputShares:
    """Makes shares with the geometric mean 1 over the hidden layers, or over all where none is hidden.

    Args:
        layers: of the model.
        curvatures: S_b t_b of each amended parameter, up to a common factor.
        errors: their standard errors, where they were sampled.

    Raises:
        ValueError: one is not a positive finite number.
    """
    for param, layer in layers.amended.items():
        if not 0 < curvatures[param] < math.inf:
            reason = "a weight, or a value on the way to the output, is infinite, NaN or too large"
            if curvatures[param] == 0:
                reason = (
                    "it is 0 if the weight is zero, if something that is zero at first stands between it and the "
                    "output, or if batch normalization in training mode is given one sample: want several there"
                )
            raise ValueError(
                f"model: {layer.name} has the share {curvatures[param]:g}, want a positive finite number; {reason}"
            )
    hidden = [param for param in layers.amended if param not in layers.heads] or list(layers.amended)
    mean = math.exp(math.fsum(math.log(curvatures[param]) for param in hidden) / len(hidden))
    rows = []
    for param, layer in layers.amended.items():
        share, width_factor = curvatures[param] / mean, layers.output_width / layer.rows
        rows.append(
            ShareRow(
                name=layer.name,
                rows=layer.rows,
                columns=layer.columns,
                is_head=param in layers.heads,
                share=share,
                error=errors[param] / mean if errors else None,
                backward_factor=width_factor * share,
                width_factor=width_factor,
            )
        )
    return OutputShares(rows)


def factors_of(layers: ModelLayers, shares: OutputShares) -> dict[str, float]:
    """Returns a mapping for ``ScaleAmendedSGD(factors=...)``, which wants an entry for every layer, the plain ones too.

    These take the plain step; their entry is that of the width rule.
    """
    plain = {layer.name: layers.output_width / layer.rows for layer in layers.plain}
    return {**plain, **{row.name: row.backward_factor for row in shares}}


def sum_squares(tensor: Tensor) -> float:
    """Returns the sum of the squares of all elements, in float64."""
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) ** 2


def check_output(output: Any, wanted: str) -> Tensor:
    """Returns the output if it is one floating tensor.

    Raises:
        TypeError: it is not; the message ends in what is wanted.
    """
    if isinstance(output, Tensor) and output.is_floating_point():
        return output
    got = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
    raise TypeError(f"model: its output is {got}, want {wanted}")


def no_path(layer: Layer) -> ValueError:
    """Returns the error for a layer that the output does not depend on."""
    return ValueError(f"model: got no gradient of its output for {layer.name}, want a path to every amended layer")


@contextmanager
def with_gradients(layers: ModelLayers) -> Iterator[None]:
    """Has all amended weights require a gradient for the while, the frozen ones too.

    Raises:
        ValueError: one cannot; the message names it.
    """
    for param, layer in layers.amended.items():
        if not param.is_floating_point():
            raise ValueError(f"model: {layer.name} is {param.dtype}, want weights that can have a gradient")
    frozen = [param for param in layers.amended if not param.requires_grad]
    try:
        for param in frozen:
            param.requires_grad_(True)
        yield
    finally:
        for param in frozen:
            param.requires_grad_(False)
