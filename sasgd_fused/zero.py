"""Arguments for torch's ZeroRedundancyOptimizer, which gives each rank an optimizer of some of the parameters."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from sasgd_fused.groups import parameter_groups
from sasgd_fused.heads import Heads
from sasgd_fused.optimizer import ScaleAmendedSGD
from sasgd_fused.options import FactorRule, Head, OutputWidth


def zero_redundancy_arguments(
    model: nn.Module,
    factors: FactorRule | Mapping[Any, float] = "width",
    head: Head = "amended",
    output_width: OutputWidth = None,
    heads: Heads | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Returns arguments for ZeroRedundancyOptimizer with which the ranks take the steps of one optimizer.

    A rank's optimizer sees its own parameters alone, the largest first and without names: its last layer is not the
    head, and equation (23) would be multiplied over its own layers. So the backward factors m_b, which follow from
    shapes, are taken here from the whole model, and a plain head gets ``amend=False``. With ``scale="relative"`` it is
    the number of layers, ``depth``.

    With ``rounding="stochastic"`` each rank draws the random numbers of its own parameters: others than one process
    does for the whole model.

    Args:
        model: the network, with the same parameters on every rank.
        factors: as in `ScaleAmendedSGD`, as are the following.
        head: ``"amended"`` or ``"plain"``.
        output_width: n_B, if it is not the rows of the last layer.
        heads: as in `parameter_groups`.
        options: others of `ScaleAmendedSGD` that are no hyperparameters, such as ``decay``, ``norms``, ``backend``.

    Returns:
        ``params`` and ``optimizer_class``. Hyperparameters are given to ZeroRedundancyOptimizer.

    Raises:
        TypeError, ValueError: an option is not what is wanted; or a head is to stay plain in the relative scale, which
            a rank could not tell from a vector.

    Example:
        >>> arguments = zero_redundancy_arguments(model, scale="relative")
        >>> optimizer = ZeroRedundancyOptimizer(**arguments, lr=0.3, momentum=0.9)
    """
    whole = ScaleAmendedSGD(
        parameter_groups(model, heads), factors=factors, head=head, output_width=output_width, **options
    )
    is_relative = options.get("scale") == "relative"
    if is_relative and head == "plain":
        raise ValueError("head: got 'plain' with scale='relative' for ZeroRedundancyOptimizer, want 'amended'")
    layers = [planned for planned in whole.planned_layers() if not planned.is_vector]
    # ZeroRedundancyOptimizer deals out a group's parameters, but not lists that belong to them: numbers only.
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    mapping = {}
    params = dict(model.named_parameters())
    for planned in layers:
        param = params.pop(planned.layer.name)
        mapping[param] = planned.backward_factor
        matrix: tuple[int | None, int | None] = planned.layer.rows, planned.layer.columns
        if matrix == param.shape[:2]:
            matrix = None, None
        rows, columns = matrix
        group = {"params": [], "amend": planned.scaled, "rows": rows, "columns": columns}
        groups.setdefault((planned.scaled, *matrix), group)["params"].append(param)
    rest = [{"params": list(params.values()), "amend": False}] if params else []
    if is_relative:
        options["depth"] = options.get("depth") or max(sum(planned.scaled for planned in layers), 1)
    else:
        options["factors"] = mapping
    return {
        "params": [*rest, *groups.values()],
        # Not among the arguments, which become part of each checkpoint, with the parameters as keys.
        "optimizer_class": functools.partial(ScaleAmendedSGD, **options),
    }
