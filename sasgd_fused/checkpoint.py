"""Checkpoints: torch.optim.SGD's state dictionaries are taken, and ours fit it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from sasgd_fused.blocks import parameter_name

# What torch.optim.SGD's groups lack. Where a checkpoint does, the optimizer's own values stay.
OUR_KEYS = ("amend", "rows", "columns")
_SGD_KEYS = ("lr", "momentum", "dampening", "weight_decay")
# How this object computes, not what: stays as constructed.
_LOCAL_KEYS = ("foreach", "fused", "differentiable")


def is_foreign(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state dictionary was made by another optimizer, torch.optim.SGD for instance."""
    return any("amend" not in group for group in state_dict["param_groups"])


def adapt(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Makes a state dictionary fit an optimizer's groups; the original is left as it is.

    A checkpoint with a single group, made from ``model.parameters()``, is dealt out to groups made by
    `parameter_groups`, which know each parameter's place in that order.

    Args:
        state_dict: what `state_dict()` of this optimizer or of torch.optim.SGD gave.
        groups: the optimizer's parameter groups.

    Raises:
        ValueError: the groups' numbers of parameters differ, or a group lacks what every torch.optim.SGD's has.
    """
    saved = [dict(group) for group in state_dict["param_groups"]]
    sizes = [len(group["params"]) for group in groups]
    # Where parameter_groups made the checkpoint's group too, it knows its order and fits as it is.
    if len(saved) == 1 and "model_order" not in saved[0] and len(saved[0]["params"]) == sum(sizes):
        saved = _deal_out(saved[0], groups)
    if [len(group["params"]) for group in saved] != sizes:
        raise ValueError(
            f"state_dict: got parameter groups of {[len(group['params']) for group in saved]} parameters, "
            f"want {sizes}; make the optimizer with the groups that the checkpoint was made with"
        )
    for group, mine in zip(saved, groups, strict=True):
        missing = [key for key in _SGD_KEYS if key not in group]
        if missing:
            raise ValueError(
                f"state_dict: got a parameter group without {', '.join(missing)}, "
                "want a checkpoint of ScaleAmendedSGD or of torch.optim.SGD"
            )
        for key in OUR_KEYS:
            group.setdefault(key, mine[key])
        for key in ("nesterov", "maximize"):  # absent from the checkpoints of old torch versions
            group.setdefault(key, False)
        group.update({key: mine[key] for key in (*_LOCAL_KEYS, "model_order") if key in mine})
    return {**state_dict, "param_groups": saved}


def check_shapes(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Checks the momentum buffers of an adapted state dictionary.

    Raises:
        ValueError: a buffer does not have the shape of its parameter; the message names it.
    """
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    places = [(index, place) for index, group in enumerate(groups) for place in range(len(group["params"]))]
    for key, (index, place) in zip(keys, places, strict=True):
        buffer = state_dict["state"].get(key, {}).get("momentum_buffer")
        param = groups[index]["params"][place]
        if isinstance(buffer, Tensor) and buffer.shape != param.shape:
            name = parameter_name(groups[index], index, place)
            raise ValueError(
                f"state_dict: momentum_buffer of {name} has shape {tuple(buffer.shape)}, "
                f"want the parameter's, {tuple(param.shape)}"
            )


def without_momentum(state: Mapping[Any, dict[str, Any]], keys: Collection[Any]) -> dict[Any, dict[str, Any]]:
    """A state without the momentum buffers of some parameters; the original is left as it is."""
    kept = {
        key: {name: value for name, value in entry.items() if name != "momentum_buffer"} if key in keys else entry
        for key, entry in state.items()
    }
    return {key: entry for key, entry in kept.items() if entry or key not in keys}


def _deal_out(saved: dict[str, Any], groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    places = [place for group in groups for place in group.get("model_order", ())]
    if sorted(places) != list(range(len(saved["params"]))):  # not made by parameter_groups, or of several models
        return [saved]
    keys = saved["params"]
    dealt = []
    for group in groups:
        mine = {**saved, "params": [keys[place] for place in group["model_order"]]}
        for key in ("param_names", *OUR_KEYS):  # these were for one group, and the groups know better
            mine.pop(key, None)
        dealt.append(mine)
    return dealt
