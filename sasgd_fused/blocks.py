"""Blocks: which parameters are amended, with how many rows and columns, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sasgd_fused.options import is_positive_int


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
