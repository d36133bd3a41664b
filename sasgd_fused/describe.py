"""What an optimizer prints as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

# Shown only where it is not this.
_DEFAULTS = {
    "output_width": None,
    "scale": "amended",
    "depth": None,
    "master_weights": False,
    "momentum_dtype": None,
    "rounding": "nearest",
    "rounding_seed": 0,
}
# One entry for each parameter: long, and said by `layer_report`.
_OF_PARAMETERS = ("params", "param_names", "rows", "columns", "heads", "model_order")


def describe(name: str, options: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> str:
    """Returns the options that are worth a word, and each run of groups that look the same, as torch lists a group.

    Args:
        name: of the optimizer's class.
        options: the constructor's arguments.
        groups: the optimizer's parameter groups.
    """
    shown = {key: value for key, value in options.items() if key not in _DEFAULTS or value != _DEFAULTS[key]}
    if options["scale"] == "relative":
        del shown["factors"], shown["norms"]  # have no part in it
    elif isinstance(shown["factors"], Mapping):
        shown["factors"] = f"a mapping of {len(shown['factors'])}"
    lines = [f"{name} ({', '.join(f'{key}={value!r}' for key, value in shown.items())}"]
    for text, run in groupby(enumerate(groups), key=lambda item: _text_of(item[1])):
        indices = [index for index, _ in run]
        which = f" {indices[0]}" if len(indices) == 1 else f"s {indices[0]} to {indices[-1]}, each"
        lines.append(f"Parameter Group{which}")
        lines.append(text)
    return "\n".join([*lines, ")"])


def _text_of(group: Mapping[str, Any]) -> str:
    shown = {"parameters": len(group["params"])}
    for key in sorted(group):
        value = group[key]
        if key not in _OF_PARAMETERS or isinstance(value, int):
            shown[key] = value
    return "\n".join(f"    {key}: {value}" for key, value in shown.items())
