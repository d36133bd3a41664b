"""Blocks: which parameters are amended, with how many rows and columns, and in which order."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor

from sasgd_fused.options import OutputWidth, is_positive_int

Matrices = Mapping[Tensor, tuple[int, int]]  # rows and columns


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
    return names[position] if names else _place(group_index, position)


class ParameterNames:
    """Has the names in groups follow their parameters when somebody edits the list of either.

    Args:
        groups: the optimizer's parameter groups, whose names, if they have any, are right.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]] = ()) -> None:
        self._of_param: dict[Tensor, str] = {}
        self._seen: list[list[Tensor]] = []
        self.note(groups)

    def note(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Takes the groups' names as they are."""
        for group in groups:
            self._of_param.update(zip(group["params"], group.get("param_names", ()), strict=False))
        self._seen = [list(group["params"]) for group in groups]

    def follow(self, groups: Sequence[dict[str, Any]]) -> None:
        """Gives every parameter the name that it had, or else the one at its place in a list of as many."""
        for index, group in enumerate(groups):
            params, names = group["params"], group.get("param_names")
            if names is None:
                continue
            seen = self._seen[index] if index < len(self._seen) else []
            if len(names) == len(params) == len(seen) and all(map(is_, params, seen)):
                continue  # whoever gave other names, meant it
            own = set(map(self._of_param.get, params))
            given = names if len(names) == len(params) else [None] * len(params)
            group["param_names"] = [
                self._of_param.get(param) or (name if name and name not in own else _place(index, position))
                for position, (param, name) in enumerate(zip(params, given, strict=True))
            ]
        self.note(groups)


def find_blocks(
    groups: Sequence[Mapping[str, Any]],
    added: Collection[int] = (),
    known: Matrices | None = None,
) -> list[Block]:
    """Lists the blocks from input to output.

    A block is a non-empty parameter with two or more dimensions. The order is that of the groups and of the
    parameters in them; groups added after construction stand before them, the newest first, because unfreezing a
    network adds the layers nearer to the input.

    Args:
        groups: the optimizer's parameter groups.
        added: indices of those that were added after construction.
        known: rows and columns of parameters that were blocks before. One without a gradient whose memory is another
            tensor's for the time being (``param.data = torch.empty(0)``) stays a block.
    """
    order = [*sorted(added, reverse=True), *(index for index in range(len(groups)) if index not in added)]
    return [block for index in order for block in _group_blocks(groups[index], index, known or {})]


def find_outputs(
    blocks: Mapping[Tensor, Block], groups: Sequence[Mapping[str, Any]], output_width: OutputWidth
) -> tuple[list[Tensor], float]:
    """Finds the parameters at the network's outputs, and n_B.

    The heads are those that a group's `heads` marks, or else the last block. n_B is the largest of their rows, the
    given number, or for "mean" the mean rows of the amended blocks besides them.

    Args:
        blocks: the block of each parameter that has one, at least one, input first.
        groups: the optimizer's parameter groups.
        output_width: the optimizer's option.
    """
    marked = [
        param
        for group in groups
        for param, is_head in zip(group["params"], group.get("heads") or (), strict=False)
        if is_head and param in blocks
    ]
    heads = marked or [[*blocks][-1]]
    is_head = set(heads)
    hidden = [block.rows for param, block in blocks.items() if block.amend and param not in is_head]
    if isinstance(output_width, int):
        return heads, output_width
    if output_width == "mean" and hidden:
        return heads, sum(hidden) / len(hidden)
    return heads, max(blocks[head].rows for head in heads)


def warn_of_late_head(groups: Sequence[Mapping[str, Any]], heads: Sequence[Tensor]) -> None:
    """Warns if the last group looks like a new head: its first block takes what the old head gives.

    It does not if its last block gives what the first of the others takes, as that of a stage that is unfrozen does.
    """
    before, late = find_blocks(groups[:-1]), list(_group_blocks(groups[-1], len(groups) - 1, {}))
    late = [block for block in late if groups[-1]["params"][block.position].requires_grad]
    if not before or not late or not heads:
        return
    head = next((b for b in before if any(groups[b.group]["params"][b.position] is head for head in heads)), before[-1])
    tensors = {block: groups[block.group]["params"][block.position] for block in (before[0], head, late[0], late[-1])}

    def feeds(one: Block, other: Block) -> bool:
        flattens = tensors[one].dim() > 2 and tensors[other].dim() == 2
        return other.columns == one.rows or (flattens and other.columns % one.rows == 0)

    if feeds(head, late[0]) and not feeds(late[-1], before[0]):
        warnings.warn(
            f"add_param_group: {late[0].name} takes the {head.rows} outputs of {head.name} and looks like a new head, "
            "but groups added later stand at the input end: its gradient is scaled, and the old head stays the head. "
            "Make the optimizer from the whole model instead; it takes frozen parameters",
            stacklevel=3,
        )


def check_block_options(group: Mapping[str, Any]) -> None:
    """Checks a group's `amend`, `rows`, `columns` and `heads`.

    Raises:
        TypeError: `amend` is neither True nor False.
        ValueError: `rows` or `columns` is neither None, nor a positive integer, nor a list with one of these for each
            parameter; or `heads` is neither None nor a list of True and False.
    """
    amend, rows, columns, heads = block_options(group)
    if not isinstance(amend, bool):
        raise TypeError(f"amend: got {amend!r}, want True or False")
    count = len(group["params"])
    flags = list(map(type, heads)) if isinstance(heads, (list, tuple)) else None
    if heads is not None and flags != [bool] * count:
        raise ValueError(f"heads: got {heads!r} for {count} parameters, want True or False for each, or None")
    for name, value in (("rows", rows), ("columns", columns)):
        entries = value if isinstance(value, (list, tuple)) else [value] * count
        if len(entries) != count:
            raise ValueError(
                f"{name}: got {len(entries)} entries for {count} parameters, want one for each, or one integer"
            )
        for entry in entries:
            if entry is not None and not is_positive_int(entry):
                raise ValueError(f"{name}: got {entry!r}, want a positive integer or None")


def block_options(group: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """The group's `amend`, `rows`, `columns` and `heads`; groups of other optimizers have none of them."""
    return group.get("amend", True), group.get("rows"), group.get("columns"), group.get("heads")


def _group_blocks(group: Mapping[str, Any], index: int, known: Matrices) -> Iterator[Block]:
    amend, all_rows, all_columns, _ = block_options(group)
    for position, param in enumerate(group["params"]):
        rows, columns = _entry(all_rows, position), _entry(all_columns, position)
        if param.dim() >= 2 and param.numel():
            rows, columns = rows or param.shape[0], columns or param.shape[1]
        elif param in known and param.grad is None:
            rows, columns = known[param]
        else:
            continue
        yield Block(index, position, parameter_name(group, index, position), rows, columns, amend)


def _place(group: int, position: int) -> str:
    return f"parameter {position} of group {group}"


def _entry(value: int | Sequence[int | None] | None, position: int) -> int | None:
    return value if value is None or isinstance(value, int) else value[position]
