"""Blocks: which parameters are amended, with how many rows and columns, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, NamedTuple

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


class ParameterLists:
    """Has the lists in groups that have an entry for each parameter follow when somebody edits the parameters.

    Args:
        groups: the optimizer's parameter groups, whose lists are right.
    """

    _KEYS = ("param_names", "rows", "columns", "heads", "model_order")

    def __init__(self, groups: Sequence[Mapping[str, Any]] = ()) -> None:
        self._of_param: dict[str, dict[Tensor, Any]] = {}
        self._seen: list[tuple[list[Tensor], dict[str, list[Any]]]] = []
        self.note(groups)

    def note(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Takes the groups' lists as they are."""
        self._of_param = {key: {} for key in self._KEYS}  # of those that are there: others are not kept alive
        self._seen = []
        for group in groups:
            lists = {key: list(group[key]) for key in self._KEYS if isinstance(group.get(key), (list, tuple))}
            for key, values in lists.items():
                self._of_param[key].update(zip(group["params"], values, strict=False))
            self._seen.append((list(group["params"]), lists))

    def follow(self, groups: Sequence[dict[str, Any]]) -> None:
        """Gives every parameter the entry that it had, unless the list was edited too; a new one's is unknown."""
        for index, group in enumerate(groups):
            params = group["params"]
            near = self._seen[index : index + 1]
            own = [
                lists
                for seen, lists in (*near, *self._seen)
                if len(seen) == len(params) and all(map(is_, seen, params))
            ]
            for key in self._KEYS:
                values = group.get(key)
                if not isinstance(values, (list, tuple)) or any(lists.get(key) == list(values) for lists in own):
                    continue
                is_old = any(lists.get(key) == list(values) for _, lists in self._seen)
                if is_old or (not own and len(values) != len(params)):
                    group[key] = [
                        self._of_param[key].get(param, _unknown(key, index, position))
                        for position, param in enumerate(params)
                    ]
            if None in group.get("model_order", ()):
                del group["model_order"]
        self.note(groups)


def _unknown(key: str, group: int, position: int) -> Any:
    return {"param_names": _place(group, position), "heads": False}.get(key)


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


class OldHead(NamedTuple):
    """The head before a group that looks like a new one.

    Attributes:
        new: the group's first block.
        block: what it takes the outputs of.
        is_there: whether that is a head; else the head was taken out before.
    """

    new: Block
    block: Block
    is_there: bool


def find_old_head(
    groups: Sequence[Mapping[str, Any]], heads: Sequence[Tensor], added: Collection[int]
) -> OldHead | None:
    """Finds what the last group looks like a new head of: its first block takes what that gives.

    It does not if its last block gives what the first of the others takes, as that of a stage that is unfrozen does.

    Args:
        groups: the optimizer's parameter groups.
        heads: the parameters at the network's outputs, as far as is known.
        added: indices of the groups that were added after construction, the last aside.
    """
    before, late = find_blocks(groups[:-1], added), list(_group_blocks(groups[-1], len(groups) - 1, {}))
    late = [block for block in late if block.amend and groups[-1]["params"][block.position].requires_grad]
    if not before or not late or not heads or groups[-1].get("heads"):
        return None
    tensors = {block: groups[block.group]["params"][block.position] for block in (*before, *late)}
    head = next((block for block in before if any(tensors[block] is head for head in heads)), None)
    last = head or before[-1]

    def feeds(one: Block, other: Block) -> bool:
        is_flattened = tensors[one].dim() > 2 and tensors[other].dim() == 2
        is_alike = tensors[one].dim() == tensors[other].dim() or is_flattened
        return (other.columns == one.rows and is_alike) or (is_flattened and other.columns % one.rows == 0)

    # Few channels are what any network begins with.
    if last.rows > 3 and feeds(last, late[0]) and not feeds(late[-1], before[0]):
        return OldHead(late[0], last, head is not None)
    return None


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


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
