"""The network that an optimizer's groups hold: its outputs, and which of its groups were added to it later."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sasgd_fused.layers import Layer, find_layers
from sasgd_fused.options import OutputWidth


class Network:
    """Follows the groups of an optimizer as they are added, taken out and edited.

    Every change gives it other sets and lists, so that a shallow copy is what to go back to.

    Args:
        output_width: the optimizer's option.
        originals: how many of its groups, the first ones, were there at construction, if it is not new.

    Attributes:
        heads: the parameters of the layers at the outputs.
        output_width: n_B.
    """

    def __init__(self, output_width: OutputWidth, originals: int = 0) -> None:
        self.heads: list[Tensor] = []
        self.output_width = 1.0
        self._option = output_width
        self._original: set[Tensor] = set()  # parameters of groups that were there at construction, or took their place
        self._added: set[Tensor] = set()  # of groups that were added since
        self._originals = originals  # how many groups of the former kind there were at the last look
        self._matrices: dict[Tensor, tuple[int, int]] = {}  # rows and columns of the layers

    def find_layers(self, groups: Sequence[Mapping[str, Any]]) -> list[Layer]:
        """Returns the layers of the groups as they are now, input first.

        The outputs are found anew if nothing is left of the network before, or another head is in the place of the old
        one.
        """
        added = self._added_among(groups)
        if len(added) == len(groups):  # nothing is left of the network before
            added = []
        of_kind = [set[Tensor](), set[Tensor]()]
        for index, group in enumerate(groups):
            of_kind[index in added].update(group["params"])
        self._original, self._added = of_kind
        self._originals = len(groups) - len(added)
        layers = find_layers(groups, added, self._matrices)
        params = {groups[layer.group]["params"][layer.position]: layer for layer in layers}
        is_new = not any(param in self._matrices for param in params)
        has_no_head = not any(head in params for head in self.heads)
        if params and (is_new or (has_no_head and [*params][-1] not in self._matrices)):
            self.heads, self.output_width = find_outputs(params, groups, self._option)
        elif any(any(group.get("heads") or ()) for group in groups):
            self.heads, width = find_outputs(params, groups, self._option)
            self.output_width = self.output_width if self._option == "mean" else width
        self._matrices = {param: (layer.rows, layer.columns) for param, layer in params.items()}
        return layers

    def add(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Places the last group, which is new, at the input end; a head, if there is none, at the output end.

        Warns if it looks like a new head beside the old one.
        """
        params = groups[-1]["params"]
        old = find_old_head(groups, self.heads, self._added_among(groups[:-1])) if self._originals else None
        if old and not old.is_there:
            self._original = self._original.union(params)
        elif self._originals:
            self._added = self._added.union(params)
        if old and old.is_there:
            warnings.warn(
                f"add_param_group: {old.new.name} takes the {old.layer.rows} outputs of {old.layer.name} and looks "
                "like a new head, but groups added later stand at the input end: it is scaled, and the old head stays "
                "the head. Make the optimizer from the whole model instead; it takes frozen parameters",
                stacklevel=3,
            )

    def _added_among(self, groups: Sequence[Mapping[str, Any]]) -> list[int]:
        return [index for index, group in enumerate(groups) if self._is_added(index, group["params"])]

    def _is_added(self, index: int, params: Sequence[Tensor]) -> bool:
        for param in params:
            if param in self._original or param in self._added:
                return param in self._added
        return index >= self._originals > 0


def find_outputs(
    layers: Mapping[Tensor, Layer], groups: Sequence[Mapping[str, Any]], output_width: OutputWidth
) -> tuple[list[Tensor], float]:
    """Returns the parameters at the network's outputs, and n_B.

    The heads are those that a group's `heads` marks, or else the last layer. n_B is the largest of their rows, the
    given number, or for "mean" the mean rows of the amended layers besides them.

    Args:
        layers: the layer of each parameter that has one, at least one, input first.
        groups: the optimizer's parameter groups.
        output_width: the optimizer's option.
    """
    marked = [
        param
        for group in groups
        for param, is_head in zip(group["params"], group.get("heads") or (), strict=False)
        if is_head and param in layers
    ]
    heads = marked or [[*layers][-1]]
    is_head = set(heads)
    hidden = [layer.rows for param, layer in layers.items() if layer.amend and param not in is_head]
    if isinstance(output_width, int):
        return heads, output_width
    if output_width == "mean" and hidden:
        return heads, sum(hidden) / len(hidden)
    return heads, max(layers[head].rows for head in heads)


class OldHead(NamedTuple):
    """The head before a group that looks like a new one.

    Attributes:
        new: the group's first layer.
        layer: what it takes the outputs of.
        is_there: whether that is a head; else the head was taken out before.
    """

    new: Layer
    layer: Layer
    is_there: bool


def find_old_head(
    groups: Sequence[Mapping[str, Any]], heads: Sequence[Tensor], added: Collection[int]
) -> OldHead | None:
    """Returns the head in whose place the last group seems to come: its first layer takes what that gives.

    It does not if its last layer gives what the first of the others takes, as that of a stage that is unfrozen does.

    Args:
        groups: the optimizer's parameter groups.
        heads: the parameters at the network's outputs, as far as is known.
        added: indices of the groups that were added after construction, the last aside.
    """
    before = find_layers(groups[:-1], added)
    tensors = {layer: groups[layer.group]["params"][layer.position] for layer in find_layers(groups)}
    late = [layer for layer in tensors if layer.group == len(groups) - 1]
    late = [layer for layer in late if layer.amend and tensors[layer].requires_grad]
    if not before or not late or not heads or groups[-1].get("heads"):
        return None
    head = next((layer for layer in before if any(tensors[layer] is head for head in heads)), None)
    last = head or before[-1]

    def feeds(one: Layer, other: Layer) -> bool:
        is_flattened = tensors[one].dim() > 2 and tensors[other].dim() == 2
        is_alike = tensors[one].dim() == tensors[other].dim() or is_flattened
        return (other.columns == one.rows and is_alike) or (is_flattened and other.columns % one.rows == 0)

    # Few channels are what any network begins with.
    if last.rows > 3 and feeds(last, late[0]) and not feeds(late[-1], before[0]):
        return OldHead(late[0], last, head is not None)
    return None
