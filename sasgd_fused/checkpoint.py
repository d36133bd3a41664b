"""Checkpoints: takes torch.optim.SGD's state dictionaries, and makes ours fit it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sasgd_fused.layers import parameter_name
from sasgd_fused.layout import has_layout_of, in_layout_of
from sasgd_fused.options import OPTION_NAMES, Options
from sasgd_fused.precision import Precision, precision_of
from sasgd_fused.shards import is_sharded

# What torch.optim.SGD's groups lack. Where a checkpoint does, the optimizer's own values stay.
OUR_KEYS = ("amend", "rows", "columns", "heads")
_SGD_KEYS = ("lr", "momentum", "dampening", "weight_decay")
# Tensors of the state that have the shape of their parameter.
_LIKE_PARAMETER = ("momentum_buffer", "master_weight")
# How this object computes, not what: stays as constructed.
_LOCAL_KEYS = ("foreach", "fused", "differentiable")


class Loading:
    """Two hooks around torch's loading of one state dictionary.

    Args:
        groups: the optimizer's parameter groups.
        options: the optimizer's options.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], options: Options) -> None:
        self._groups = groups
        self._options = options
        self._states: list[tuple[Tensor, Mapping[str, Any], Precision]] = []
        self._saved_options: dict[str, Any] = {}
        self._is_foreign = False
        self._restarts_momentum = False

    def adapt(self, _: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Checks a state dictionary, and returns it as torch is to load it; the hook before loading."""
        adapted = adapt(state_dict, self._groups)
        check_shapes(adapted, self._groups)
        self._saved_options, self._is_foreign = saved_options(state_dict), is_foreign(state_dict)
        if self._options.is_relative and not self._is_of_relative(adapted["state"]):
            # Momentum of another scale has the loss's unit.
            self._restarts_momentum = any("momentum_buffer" in entry for entry in adapted["state"].values())
            adapted["state"] = without_momentum(adapted["state"], adapted["state"])
        for param, name, saved in saved_states(adapted, self._groups):
            if saved:
                self._states.append((param, saved, precision_of(param.dtype, self._options, name)))
        return adapted

    def restore_precision(self, optimizer: Optimizer) -> None:
        """Gives the loaded state its dtypes; the hook after loading."""
        for param, saved, precision in self._states:
            if param in optimizer.state:
                restore_precision(optimizer.state[param], saved, param, precision)

    def _is_of_relative(self, state: Mapping[Any, Mapping[str, Any]]) -> bool:
        """Whether a checkpoint is of the relative scale: its options say so, which ZeroRedundancyOptimizer drops."""
        has_norms = any("gradient_norm_sq" in kept for kept in state.values())
        return has_norms or self._saved_options.get("scale") == "relative"

    def warn(self, own: Mapping[str, Any]) -> None:
        """Warns of a checkpoint made with other options than the optimizer's, which stay, or by another optimizer.

        Args:
            own: the optimizer's options as plain values.
        """
        saved, momentum = self._saved_options, "; momentum begins anew" if self._restarts_momentum else ""
        other = [name for name in saved if saved[name] != own[name]]
        if other:
            rate = "; its lr is now in force, and was chosen for that scale" if "scale" in other else ""
            made, stay = (", ".join(f"{name}={options[name]!r}" for name in other) for options in (saved, own))
            warnings.warn(
                f"state_dict: this checkpoint was made with {made}; this optimizer has {stay}, which stays in "
                f"force{rate}{momentum}",
                stacklevel=3,
            )
        if self._is_foreign:
            warnings.warn(
                "state_dict: this checkpoint is not of ScaleAmendedSGD; its lr, momentum and weight_decay are now in "
                f"force, and were chosen for another optimizer{momentum}",
                stacklevel=3,
            )


def is_foreign(state_dict: Mapping[str, Any]) -> bool:
    """Returns whether a state dictionary was made by another optimizer, torch.optim.SGD for instance."""
    groups = state_dict["param_groups"]
    return any("amend" not in group and "decay" not in group for group in groups)


def saved_options(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the optimizer that made a state dictionary, as far as it tells."""
    for group in state_dict["param_groups"]:
        return {name: group[name] for name in OPTION_NAMES if name in group}
    return {}


def adapt(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a state dictionary that fits an optimizer's groups; the original stays as it is.

    A checkpoint with a single group, made from ``model.parameters()``, is dealt out to groups made by
    `parameter_groups`, which know each parameter's place in that order. So is one whose groups `parameter_groups` made
    when it amended other weights.

    Args:
        state_dict: what `state_dict()` of this optimizer or of torch.optim.SGD gave.
        groups: the optimizer's parameter groups.

    Raises:
        ValueError: the groups' numbers of parameters differ, or a group lacks what every torch.optim.SGD's has.
    """
    saved = [dict(group) for group in state_dict["param_groups"]]
    sizes = [len(group["params"]) for group in groups]
    # Where parameter_groups made the checkpoint's group too, it knows its order and fits as it is.
    if len(saved) == 1 and "model_order" not in saved[0]:
        saved = _deal_out(saved, [range(sum(sizes))], groups)
    elif [len(group["params"]) for group in saved] != sizes:
        saved = _deal_out(saved, [group.get("model_order", ()) for group in saved], groups)
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
            if key in mine:
                group.setdefault(key, mine[key])
        for key in ("nesterov", "maximize"):  # absent from the checkpoints of old torch versions
            group.setdefault(key, False)
        group.update({key: mine[key] for key in (*_LOCAL_KEYS, "model_order", "param_names") if key in mine})
        for key in OPTION_NAMES:
            group.pop(key, None)
    return {**state_dict, "param_groups": saved}


def check_shapes(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Checks the momentum buffers and master weights of an adapted state dictionary.

    Raises:
        ValueError: one does not have the shape of its parameter; the message names it.
    """
    for param, name, saved in saved_states(state_dict, groups):
        for key in _LIKE_PARAMETER:
            kept = saved.get(key)
            is_away = not param.numel() and param.grad is None  # for a time
            if isinstance(kept, Tensor) and kept.shape != param.shape and not is_away:
                raise ValueError(
                    f"state_dict: {key} of {name} has shape {tuple(kept.shape)}, "
                    f"want the parameter's, {tuple(param.shape)}"
                )


def saved_states(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Tensor, str, Mapping[str, Any]]]:
    """Yields each parameter, its name, and its state in an adapted state dictionary."""
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    places = [(index, place) for index, group in enumerate(groups) for place in range(len(group["params"]))]
    for key, (index, place) in zip(keys, places, strict=True):
        name = parameter_name(groups[index], index, place)
        yield groups[index]["params"][place], name, state_dict["state"].get(key, {})


def restore_precision(state: dict[str, Any], saved: Mapping[str, Any], param: Tensor, precision: Precision) -> None:
    """Gives a loaded state the dtypes in which this optimizer keeps it; torch casts all to the parameter's.

    Args:
        state: the parameter's, as torch loaded it; is changed.
        saved: the same in the state dictionary.
        param: the parameter.
        precision: how it is stored. A master that this optimizer does not keep is dropped.
    """
    if not precision.has_master:
        state.pop("master_weight", None)
    dtypes = {"momentum_buffer": precision.momentum_dtype, "master_weight": torch.float32}
    for key in _LIKE_PARAMETER:
        kept = state.get(key)
        if kept is None:
            continue
        if kept.dtype != dtypes[key]:
            # A copy: a master that two optimizers share would be the weights of two models.
            kept = saved[key].to(device=param.device, dtype=dtypes[key], copy=True)
        if not is_sharded(param) and kept.shape == param.shape and not has_layout_of(kept, param):
            kept = in_layout_of(kept, param, kept.dtype)
        state[key] = kept


def without_momentum(state: Mapping[Any, dict[str, Any]], keys: Collection[Any]) -> dict[Any, dict[str, Any]]:
    """Returns a state without the momentum buffers of some parameters; the original stays as it is."""
    kept = {
        key: {name: value for name, value in entry.items() if name != "momentum_buffer"} if key in keys else entry
        for key, entry in state.items()
    }
    return {key: entry for key, entry in kept.items() if entry or key not in keys}


def complete(
    state_dict: dict[str, Any],
    params: Sequence[Tensor],
    unstarted: Sequence[Tensor],
    unset: Mapping[Tensor, Mapping[str, Any]],
    options: Mapping[str, Any],
) -> None:
    """Completes a state dictionary, in place.

    Args:
        state_dict: as torch makes it.
        params: all parameters, in the order of the groups.
        unstarted: those whose momentum buffers have not started, which are left out.
        unset: what the state of each has before its first update.
        options: the optimizer's, for every group.
    """
    if unstarted:
        places = {id(param): place for place, param in enumerate(params)}
        state_dict["state"] = without_momentum(state_dict["state"], {places[id(param)] for param in unstarted})
    if state_dict["state"]:
        # torch.distributed.checkpoint wants an entry for every parameter that is trained, or none at all, with what a
        # step would have put into it.
        for place, param in enumerate(params):
            if param.requires_grad:
                state_dict["state"][place] = {**unset.get(param, {}), **state_dict["state"].get(place, {})}
    for group in state_dict["param_groups"]:
        group.update(options)


def _deal_out(
    saved: list[dict[str, Any]], orders: Sequence[Sequence[int]], groups: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns groups with their parameters' keys, and the values of a saved group that was amended likewise."""
    places = [place for order in orders for place in order]
    keys = [key for group in saved for key in group["params"]]
    wanted = [place for group in groups for place in group.get("model_order", ())]
    if not sorted(places) == sorted(wanted) == list(range(len(keys))):  # not by parameter_groups, or several models
        return saved
    key_of = dict(zip(places, keys, strict=True))
    dealt = []
    for group in groups:
        like = next((each for each in saved if each.get("amend") == group.get("amend", True)), saved[-1])
        mine = {**like, "params": [key_of[place] for place in group["model_order"]]}
        for key in ("param_names", *OUR_KEYS):  # these were for other groups, and the groups know better
            mine.pop(key, None)
        dealt.append(mine)
    return dealt
