"""Parameter groups from a model: what is amended, and what takes the plain SGD step."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

from sasgd_fused.heads import Heads, classifiers, named_heads, other_outputs
from sasgd_fused.matrices import VECTOR, Role, find_roles

# Of all elements of trainable matrices: fewer are not worth a warning where it is not known what they are.
_LARGE = 0.01


class ParameterGroups(list[dict[str, Any]]):
    """The list of groups that `parameter_groups` returns. It prints its summary.

    Attributes:
        summary: what is amended and what is not, to be printed.
    """

    summary: str = ""

    def __repr__(self) -> str:
        return self.summary or super().__repr__()


def parameter_groups(model: nn.Module, heads: Heads | None = None) -> ParameterGroups:
    """Makes parameter groups from the types of a model's modules.

    The weights of linear layers and convolutions, grouped and transposed ones with their true numbers of rows and
    columns, and the projections of nn.MultiheadAttention form a group that is amended, in the order of the modules; a
    weight or module that comes more than once stands at its last place. They may be pruned, parametrized by one tensor
    of the weight's size (spectral_norm, orthogonal), scripted, traced or exported. So may be the weights of other
    modules with integers ``out_features`` and ``in_features``, or ``out_channels`` and ``in_channels``, which count if
    they have just these sizes. All else (biases, norms, embeddings, positions, class tokens, layer scales, loose
    parameters) forms a group with ``amend=False`` before it.

    Warns of weights of layers that take the plain step all the same, unless they are frozen: parametrized by several
    tensors (weight_norm), flattened or sharded by FSDP1, recurrent, of nn.Bilinear, or of modules of unknown type if
    these have more than 1 % of the elements of all matrices. Warns, too, if the heads are not known and another weight
    than the last seems to give an output.

    Args:
        model: the network. Frozen parameters are included, so that they can be unfrozen later.
        heads: what gives the outputs: names of modules or of parameters, or modules, one or several. The head is the
            last amended weight in each. By default what ``model.get_classifier()`` returns, where there is such a
            method (timm), else the last amended weight.

    Returns:
        One or two groups for `ScaleAmendedSGD` (or any torch optimizer), with names. ``model_order`` holds each
        parameter's place in ``model.parameters()``: by it `ScaleAmendedSGD.load_state_dict` takes a checkpoint of an
        optimizer that was made from ``model.parameters()``. ``heads`` says of each amended parameter whether it is a
        head; it is there only if that is not just the last one. The list's ``summary`` prints what is amended and
        what is not.

    Raises:
        TypeError: the model is no module.
        ValueError: the model has no parameters or uninitialized ones; one of `heads` is not the model's, or has no
            amended weight.

    Example:
        >>> groups = parameter_groups(model, heads=["classifier", "aux_classifier"])
        >>> print(groups.summary)
        >>> optimizer = ScaleAmendedSGD(groups, lr=0.01, momentum=0.9)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got a {type(model).__name__}, want an nn.Module")
    named = list(model.named_parameters())
    if not named:
        raise ValueError(f"model: got {type(model).__name__} without parameters, want at least one")
    for name, param in named:
        if is_lazy(param):
            raise ValueError(f"model: got the uninitialized parameter {name}, want a model that has been run once")
    names = {param: name for name, param in named}
    order = {param: place for place, (_, param) in enumerate(named)}
    roles: dict[Parameter, Role] = {}
    for param, role in find_roles(model):
        roles.pop(param, None)  # a tied weight moves to its last use
        roles[param] = role
    amended = [param for param, role in roles.items() if not role.why]
    plain = sorted((param for param, role in roles.items() if role.why), key=order.__getitem__)
    matrices = {param: (roles[param].rows, roles[param].columns) for param in amended}
    all_names: dict[Parameter, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        all_names.setdefault(param, []).append(name)
    known = classifiers(model, matrices, all_names) if heads is None else named_heads(model, heads, amended)

    groups = ParameterGroups()
    for chosen, amend in ((plain, False), (amended, True)):
        if not chosen:
            continue
        group: dict[str, Any] = {
            "params": [(names[param], param) for param in chosen],
            "amend": amend,
            "model_order": [order[param] for param in chosen],
        }
        if amend:
            group["rows"] = [rows for rows, _ in matrices.values()]
            group["columns"] = [columns for _, columns in matrices.values()]
            if known and set(known) != {amended[-1]}:
                group["heads"] = [param in set(known) for param in chosen]
        groups.append(group)
    groups.summary = _summary(roles, names, amended, plain, known or amended[-1:])
    if message := _plain_message(roles, names, known):
        warnings.warn(message, stacklevel=2)
    others = [] if known else other_outputs(matrices, all_names)
    if others:
        last, listed = names[amended[-1]], _listed(others[::-1], names)
        warnings.warn(
            f"heads: got None, by which the last amended weight, {last}, is the only head, but {listed} may give "
            f"outputs too; want the names of all heads, or heads={last!r}",
            stacklevel=2,
        )
    return groups


def _plain_message(
    roles: Mapping[Parameter, Role], names: Mapping[Parameter, str], heads: Collection[Parameter]
) -> str:
    """Returns a warning of layers' weights that take the plain step, or an empty text."""
    trained = {param: role for param, role in roles.items() if param.requires_grad}
    total = sum(param.numel() for param, role in trained.items() if not role.why or role.warn != "never")
    doubtful = sum(param.numel() for param, role in trained.items() if role.warn == "if large")
    reasons: dict[str, list[Parameter]] = {}
    for param, role in trained.items():
        if role.warn == "always" or (role.warn == "if large" and doubtful > _LARGE * total):
            reasons.setdefault(role.why, []).append(param)
    if not reasons:
        return ""
    parts = [f"{len(params)} {why} ({_listed(params, names)})" for why, params in reasons.items()]
    amended = [param for param, role in roles.items() if not role.why]
    places = {param: place for place, param in enumerate(roles)}
    if (
        amended
        and not heads
        and any(places[param] > places[amended[-1]] for params in reasons.values() for param in params)
    ):
        parts.append(f"so that {names[amended[-1]]} counts as the head")
    return (
        f"model: got {_amount([param for params in reasons.values() for param in params])} that take the plain SGD "
        f"step: {'; '.join(parts)}. Want the weights of linear layers and convolutions as one tensor each, or a "
        "group of your own with rows and columns; parameter_groups(model).summary lists all"
    )


def _summary(
    roles: Mapping[Parameter, Role],
    names: Mapping[Parameter, str],
    amended: Sequence[Parameter],
    plain: Sequence[Parameter],
    heads: Sequence[Parameter],
) -> str:
    vectors = {param for param in plain if roles[param] == VECTOR}
    lines = [f"amended: {_amount(amended)}"]
    lines += [f"  head: {names[param]}, {roles[param].rows} rows, {roles[param].columns} columns" for param in heads]
    listed = [param for param in plain if param not in vectors]
    lines.append(f"plain: {_amount(listed)}, and {len(vectors)} vectors")
    lines += [f"  {names[param]} {tuple(param.shape)}: {roles[param].why}" for param in listed]
    return "\n".join(lines)


def _amount(params: Sequence[Parameter]) -> str:
    elements = sum(param.numel() for param in params)
    return f"{len(params)} {'matrix' if len(params) == 1 else 'matrices'} of {elements:,} elements"


def _listed(params: Sequence[Parameter], names: Mapping[Parameter, str]) -> str:
    more = [f"{len(params) - 2} more"] if len(params) > 3 else []
    return ", ".join([names[param] for param in params[: 2 if more else 3]] + more)
