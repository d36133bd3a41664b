"""Blocks: which parameters are amended, with how many rows and columns, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import Parameter

from sasgd_fused.options import is_positive_int

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Block:
    """A parameter that has a place in the backward factors.

    Attributes:
        group: index of its parameter group.
        position: index of the parameter in that group.
        name: its name, or where it stands if names are not known.
        rows: output units.
        columns: input units.
        amend: whether its gradient is scaled; otherwise the block only keeps its place.
    """

    group: int
    position: int
    name: str
    rows: int
    columns: int
    amend: bool


def parameter_name(group: Mapping[str, Any], group_index: int, position: int) -> str:
    """The parameter's name where the optimizer was given names, else its place."""
    names = group.get("param_names")
    return names[position] if names else f"parameter {position} of group {group_index}"


def find_blocks(groups: Sequence[Mapping[str, Any]], initial_groups: int) -> list[Block]:
    """Lists the blocks from input to output.

    A block is a non-empty parameter with two or more dimensions. The order is that of the groups and of the
    parameters in them; groups added after construction stand before them, the newest first, because unfreezing a
    network adds the layers nearer to the input.

    Args:
        groups: the optimizer's parameter groups.
        initial_groups: how many of them were there at construction.
    """
    order = [*reversed(range(initial_groups, len(groups))), *range(initial_groups)]
    return [block for index in order for block in _group_blocks(groups[index], index)]


def check_block_options(group: Mapping[str, Any]) -> None:
    """Checks a group's `amend`, `rows` and `columns`.

    Raises:
        TypeError: `amend` is neither True nor False.
        ValueError: `rows` or `columns` is neither None, nor a positive integer, nor a list with one of these for each
            parameter.
    """
    if not isinstance(group["amend"], bool):
        raise TypeError(f"amend: got {group['amend']!r}, want True or False")
    count = len(group["params"])
    for name in ("rows", "columns"):
        value = group[name]
        entries = value if isinstance(value, (list, tuple)) else [value] * count
        if len(entries) != count:
            raise ValueError(
                f"{name}: got {len(entries)} entries for {count} parameters, want one for each, or one integer"
            )
        for entry in entries:
            if entry is not None and not is_positive_int(entry):
                raise ValueError(f"{name}: got {entry!r}, want a positive integer or None")


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Makes parameter groups from the types of a model's modules.

    The weights of linear layers and convolutions, grouped and transposed ones with their true numbers of rows and
    columns, form a group that is amended, in the order of the modules; a weight or module that comes more than once
    stands at its last place. All else (biases, norms,
    embeddings, positions, class tokens, layer scales, loose parameters) forms a group with ``amend=False`` before it.

    Args:
        model: the network. Frozen parameters are included, so that they can be unfrozen later.

    Returns:
        One or two groups for `ScaleAmendedSGD` (or any torch optimizer), with names. ``model_order`` holds each
        parameter's place in ``model.parameters()``: by it `ScaleAmendedSGD.load_state_dict` takes a checkpoint of an
        optimizer that was made from ``model.parameters()``.

    Raises:
        ValueError: the model has no parameters.

    Example:
        >>> optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.01, momentum=0.9)
    """
    named = list(model.named_parameters())
    if not named:
        raise ValueError(f"model: got {type(model).__name__} without parameters, want at least one")
    names = {param: name for name, param in named}
    order = {param: place for place, (_, param) in enumerate(named)}
    shapes: dict[Parameter, tuple[int, int] | None] = {}
    for param, shape in _last_uses(model):
        shapes.pop(param, None)  # a tied weight moves to its last use
        shapes[param] = shape
    groups: list[dict[str, Any]] = []
    for amend in (False, True):
        chosen = [param for param, shape in shapes.items() if (shape is not None) == amend]
        if not amend:
            chosen.sort(key=order.__getitem__)
        if not chosen:
            continue
        group: dict[str, Any] = {
            "params": [(names[param], param) for param in chosen],
            "amend": amend,
            "model_order": [order[param] for param in chosen],
        }
        if amend:
            matrices = [shape for param in chosen if (shape := shapes[param])]
            group["rows"] = [rows for rows, _ in matrices]
            group["columns"] = [columns for _, columns in matrices]
        groups.append(group)
    return groups


def _group_blocks(group: Mapping[str, Any], index: int) -> Iterator[Block]:
    for position, param in enumerate(group["params"]):
        if param.dim() < 2 or param.numel() == 0:
            continue
        yield Block(
            index,
            position,
            parameter_name(group, index, position),
            _entry(group["rows"], position) or param.shape[0],
            _entry(group["columns"], position) or param.shape[1],
            group["amend"],
        )


def _entry(value: int | Sequence[int | None] | None, position: int) -> int | None:
    return value if value is None or isinstance(value, int) else value[position]


def _last_uses(model: nn.Module) -> Iterator[tuple[Parameter, tuple[int, int] | None]]:
    """Every (parameter, matrix shape or None) in the order of the modules; a tied parameter comes again."""
    for _, module in model.named_modules(remove_duplicate=False):
        for name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            yield param, _matrix_shape(module) if name == "weight" and param.numel() else None


def _matrix_shape(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        return module.out_channels, module.in_channels
    return None
