"""Layers: which parameters have a place in the backward factors, with how many rows and columns, in which order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sasgd_fused.options import is_positive_int

Matrices = Mapping[Tensor, tuple[int, int]]  # rows and columns


@dataclass(frozen=True)
class Layer:
    """A parameter that has a place in the backward factors.

    Attributes:
        group: index of its parameter group.
        position: index of the parameter in that group.
        name: its name, or where it stands if names are not known.
        rows: output units.
        columns: input units.
        amend: whether its gradient is scaled; otherwise the layer only keeps its place.
    """

    group: int
    position: int
    name: str
    rows: int
    columns: int
    amend: bool


def parameter_name(group: Mapping[str, Any], group_index: int, position: int) -> str:
    """Returns the parameter's name where the optimizer was given names, else its place."""
    names = group.get("param_names")
    return names[position] if names else f"parameter {position} of group {group_index}"


def find_layers(
    groups: Sequence[Mapping[str, Any]],
    added: Collection[int] = (),
    known: Matrices | None = None,
) -> list[Layer]:
    """Returns the layers from input to output.

    A layer is a non-empty parameter with two or more dimensions. The order is that of the groups and of the
    parameters in them; groups added after construction stand before them, the newest first, because unfreezing a
    network adds the layers nearer to the input.

    Args:
        groups: the optimizer's parameter groups.
        added: indices of those that were added after construction.
        known: rows and columns of parameters that were layers before. One without a gradient whose memory is another
            tensor's for the time being (``param.data = torch.empty(0)``) stays a layer.
    """
    order = [*sorted(added, reverse=True), *(index for index in range(len(groups)) if index not in added)]
    return [layer for index in order for layer in _group_layers(groups[index], index, known or {})]


def find_vectors(groups: Sequence[Mapping[str, Any]], layers: Collection[Layer]) -> list[Layer]:
    """Returns all other non-empty parameters that are scaled by their own gradient, in the order of the groups.

    These are what is no layer, or has ``amend=False``; each counts as one column.
    """
    taken = {(layer.group, layer.position) for layer in layers if layer.amend}
    return [
        Layer(index, position, parameter_name(group, index, position), param.numel(), 1, True)
        for index, group in enumerate(groups)
        for position, param in enumerate(group["params"])
        if (index, position) not in taken and param.numel()
    ]


def check_layer_options(group: Mapping[str, Any]) -> None:
    """Checks a group's `amend`, `rows`, `columns` and `heads`.

    Raises:
        TypeError: `amend` is neither True nor False.
        ValueError: `rows` or `columns` is neither None, nor a positive integer, nor a list with one of these for each
            parameter; or `heads` is neither None nor a list of True and False.
    """
    amend, rows, columns, heads = layer_options(group)
    if not isinstance(amend, bool):
        raise TypeError(f"amend: got {amend!r}, want True or False")
    count = len(group["params"])
    flags = list(map(type, heads)) if _is_list(heads) else None
    if heads is not None and flags != [bool] * count:
        raise ValueError(f"heads: got {heads!r} for {count} parameters, want True or False for each, or None")
    for name, value in (("rows", rows), ("columns", columns)):
        entries = value if _is_list(value) else [value] * count
        if len(entries) != count:
            raise ValueError(
                f"{name}: got {len(entries)} entries for {count} parameters, want one for each, or one integer"
            )
        for entry in entries:
            if entry is not None and not is_positive_int(entry):
                raise ValueError(f"{name}: got {entry!r}, want a positive integer or None")


def layer_options(group: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Returns the group's `amend`, `rows`, `columns` and `heads`; groups of other optimizers have none of them."""
    return group.get("amend", True), group.get("rows"), group.get("columns"), group.get("heads")


def _group_layers(group: Mapping[str, Any], index: int, known: Matrices) -> Iterator[Layer]:
    amend, all_rows, all_columns, _ = layer_options(group)
    for position, param in enumerate(group["params"]):
        rows, columns = _entry(all_rows, position), _entry(all_columns, position)
        if param.dim() >= 2 and param.numel():
            rows, columns = rows or param.shape[0], columns or param.shape[1]
        elif param in known and param.grad is None:
            rows, columns = known[param]
        else:
            continue
        yield Layer(index, position, parameter_name(group, index, position), rows, columns, amend)


def _entry(value: int | Sequence[int | None] | None, position: int) -> int | None:
    return value if value is None or isinstance(value, int) else value[position]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
