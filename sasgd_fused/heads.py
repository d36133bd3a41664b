"""Heads: which of the amended weights give the network's outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import Parameter

_HEAD_WORDS = frozenset(
    [
        *("head", "heads", "classifier", "classifiers", "cls", "logit", "logits", "predictor", "predictors", "pred"),
        *("score", "scores", "policy", "actor", "critic"),
    ]
)

Heads = str | nn.Module | Iterable[str | nn.Module]


def named_heads(model: nn.Module, heads: Heads, amended: Sequence[Parameter]) -> list[Parameter]:
    """Returns the last amended weight in each of the heads.

    Args:
        model: the network.
        heads: names of modules or parameters, or modules; one of them, or several.
        amended: the amended weights, from input to output.

    Raises:
        ValueError: one of `heads` is not the model's or has no amended weight, or there are none.
    """
    several = [heads] if isinstance(heads, (str, nn.Module)) or not isinstance(heads, Iterable) else list(heads)
    if not several:
        raise ValueError("heads: got none, want at least one name or module, or None")
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for head in several:
        if isinstance(head, str) and head in parameters:
            inside = {parameters[head]}
        elif isinstance(head, str) and head in modules:
            inside = set(modules[head].parameters())
        elif isinstance(head, nn.Module) and any(head is module for module in modules.values()):
            inside = set(head.parameters())
        else:
            got = repr(head) if isinstance(head, str) else f"a {type(head).__name__} that is not one of its modules"
            raise ValueError(
                f"heads: got {got}, want names of modules or parameters of {type(model).__name__}, or modules of it"
            )
        last = _last(inside, amended)
        if last is None:
            got = repr(head) if isinstance(head, str) else type(head).__name__
            raise ValueError(f"heads: got {got}, which has no amended weight, want modules or parameters that have one")
        found.append(last)
    return found


def classifiers(
    model: nn.Module, amended: Mapping[Parameter, tuple[int, int]], names: Mapping[Parameter, Sequence[str]]
) -> list[Parameter]:
    """Returns the heads in what `model.get_classifier()` returns, as in timm's models; none where that is not known.

    In each module these are the last amended weight, and others that seem to give outputs.

    Args:
        model: the network.
        amended: the rows and columns of the amended weights, from input to output.
        names: each weight's names, several if it is tied.
    """
    get_classifier: Any = getattr(model, "get_classifier", None)
    if not callable(get_classifier):
        return []
    try:
        got = get_classifier()
    except (TypeError, NotImplementedError):  # another method of that name
        return []
    own = set(model.modules())
    modules = got if isinstance(got, (tuple, list, nn.ModuleList)) else [got]
    others = other_outputs(amended, names)
    found = []
    for module in modules:
        inside = set(module.parameters()) if isinstance(module, nn.Module) and module in own else set()
        last = _last(inside, list(amended))
        if last is not None:
            found += [last, *(param for param in others if param in inside)]
    return found


def other_outputs(
    amended: Mapping[Parameter, tuple[int, int]], names: Mapping[Parameter, Sequence[str]]
) -> list[Parameter]:
    """Guesses, by shapes and names, which amended weights give outputs beside the last one.

    Such a weight is trained, has as many rows as the last one or the name of a head, and no later one takes its rows.

    Args:
        amended: the rows and columns of the amended weights, from input to output.
        names: each weight's names, several if it is tied.
    """
    params = list(amended)
    found = []
    for place, param in enumerate(params[:-1]):
        rows, _ = amended[param]
        words = {word for name in names[param] for word in re.split(r"[._\d]+", name.lower())}
        if not param.requires_grad or (rows != amended[params[-1]][0] and not words & _HEAD_WORDS):
            continue
        if not any(_takes(amended[later], later, rows, param) for later in params[place + 1 :]):
            found.append(param)
    return found


def _takes(matrix: tuple[int, int], later: Parameter, rows: int, param: Parameter) -> bool:
    columns = matrix[1]
    flattened = later.dim() == 2 and param.dim() > 2 and columns % rows == 0
    return columns == rows or flattened or rows % columns == 0


def _last(inside: set[Parameter], amended: Sequence[Parameter]) -> Parameter | None:
    return next((param for param in reversed(amended) if param in inside), None)
