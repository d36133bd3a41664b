"""The lists in parameter groups that have an entry for each parameter: names, rows, columns, heads, model order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

from torch import Tensor

from sasgd_fused.layers import parameter_name


def name_as_others(params: Sequence[Any], groups: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
    """Returns the parameters of a new group, named by their places if those of other groups alone have names.

    Args:
        params: tensors, or pairs of a name and one.
        groups: the optimizer's parameter groups, without the new one.
    """
    if not groups or "param_names" not in groups[0] or any(isinstance(param, tuple) for param in params):
        return params
    return [(parameter_name({}, len(groups), position), param) for position, param in enumerate(params)]


class ParameterLists:
    """Makes the lists with an entry for each parameter follow when somebody edits a group's parameters.

    Args:
        groups: the optimizer's parameter groups, whose lists are right.
    """

    _KEYS = ("param_names", "rows", "columns", "heads", "model_order")

    def __init__(self, groups: Sequence[Mapping[str, Any]] = ()) -> None:
        self._of_param: dict[str, dict[Tensor, Any]] = {}
        self._seen: list[tuple[list[Tensor], dict[str, list[Any]]]] = []
        self.note(groups)

    def note(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Notes the groups' lists as they are."""
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
    return {"param_names": parameter_name({}, group, position), "heads": False}.get(key)
