"""The layer report: what the optimizer does to each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import Any, SupportsIndex, overload

from sasgd_fused.backends.base import Backend
from sasgd_fused.factors import CARRIED_SHARE, decay_scale, layer_scale, relative_scale
from sasgd_fused.hyperparameters import GroupValues
from sasgd_fused.plan import PlannedLayer
from sasgd_fused.text_table import aligned, as_html, cell

# From here on a step's decay overshoots; it diverged at 1.5.
LARGE_DECAY = 0.5
# A layer whose effective learning rate is so many times below the median's hardly moves.
SMALL_LR = 100
# A gradient whose squared norm is so many times the one it was scaled by makes a step that is too long.
LARGE_GROWTH = 16
# The columns that change in training.
_OF_GRADIENTS = ("gradient_norm", "growth", "output_change")
LOGGED = ("row_norm_sq", *_OF_GRADIENTS, "layer_scale", "effective_lr", "decay_per_step")


@dataclass(frozen=True)
class LayerRow:
    """One layer as the next step will treat it.

    Attributes:
        name: the parameter's name, or its place if names are not known.
        rows: output units.
        columns: input units.
        scaled: whether its gradient is scaled: neither ``amend=False`` nor a plain head.
        row_norm_sq: ‖W‖²_{2,μ}, before the floor `eps`.
        column_norm_sq: ‖Wᵀ‖²_{2,μ} = row_norm_sq · rows / columns.
        backward_factor: m_b; None in the relative scale.
        gradient_norm: √q_b = ‖g_b + λ W_b‖ of the last step; this and the next two in the relative scale alone.
        growth: q_b / v_b of the last step: by how much its gradient was larger than those before.
        output_change: lr √(q_b / v_b) / √B, the fraction of its output by which a step changes a layer at most,
            momentum aside: with the growth of the last step and the learning rate as it is now; None for a vector.
        layer_scale: s_b, 1 for a layer that is not scaled; in the relative scale NaN before the first gradient.
        effective_lr: lr · s_b.
        decay_per_step: lr · d_b, or lr · λ for a layer that is not scaled.
        stale_steps: steps that used the norm of weights that had been written unseen.
        at_eps_floor: whether row_norm_sq is below `eps`.
        at_small_lr: whether it is scaled and effective_lr 100 times below the median of all layers.
    """

    name: str
    rows: int
    columns: int
    scaled: bool
    row_norm_sq: float
    column_norm_sq: float
    backward_factor: float | None
    gradient_norm: float | None
    growth: float | None
    output_change: float | None
    layer_scale: float
    effective_lr: float
    decay_per_step: float
    stale_steps: int
    at_eps_floor: bool
    at_small_lr: bool = False

    @property
    def marks(self) -> list[str]:
        """What deserves a look, in words."""
        marks = []
        if not math.isfinite(self.row_norm_sq):
            marks.append("norm not finite")
        if self.at_eps_floor:
            marks.append("at the eps floor")
        if self.at_small_lr:
            marks.append(f"effective lr {SMALL_LR} times below the median")
        if self.growth is not None and self.growth > LARGE_GROWTH:
            marks.append(f"gradient norm over {LARGE_GROWTH**0.5:g} times those before")
        if self.decay_per_step > LARGE_DECAY:
            marks.append(f"decay per step over {LARGE_DECAY}")
        if self.stale_steps:
            marks.append(f"stale steps: {self.stale_steps}")
        return marks


class LayerReport(tuple[LayerRow, ...]):
    """A tuple of `LayerRow`, input first, that prints as a table, in a notebook too. A slice of it is a report."""

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> LayerRow: ...
    @overload
    def __getitem__(self, index: slice[Any, Any, Any], /) -> LayerReport: ...
    def __getitem__(self, index: SupportsIndex | slice[Any, Any, Any], /) -> LayerRow | LayerReport:
        found = super().__getitem__(index)
        return found if isinstance(found, LayerRow) else LayerReport(found)

    def scalars(self) -> dict[str, float]:
        """Returns the values worth logging at every step, for TensorBoard, Lightning's ``log_dict``, wandb and others.

        Returns:
            ``"<column>/<name>"`` → value, of the columns row_norm_sq, layer_scale, effective_lr and decay_per_step, and
            of gradient_norm, growth and output_change where they are known. A name that came before gets a number:
            ``"layer_scale/0.weight_2"``.

        Example:
            >>> for key, value in optimizer.layer_report().scalars().items():
            ...     writer.add_scalar(key, value, step)
        """
        named = list(zip(_distinct([row.name for row in self]), self, strict=True))
        values = {f"{column}/{name}": getattr(row, column) for column in LOGGED for name, row in named}
        return {name: value for name, value in values.items() if value is not None}

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns the fields of each row, for ``pandas.DataFrame`` or JSON."""
        return [asdict(row) for row in self]

    def __repr__(self) -> str:
        return aligned(self._table())

    def _repr_html_(self) -> str:
        """Returns the table as HTML, which notebooks show."""
        return as_html(self._table())

    def _table(self) -> list[list[str]]:
        shown = [field.name for field in fields(LayerRow) if field.type != "bool" and field.name != "stale_steps"]
        hidden = {name for name in _OF_GRADIENTS if all(getattr(row, name) is None for row in self)}
        if self and all(row.backward_factor is None for row in self):
            hidden.add("backward_factor")
        columns = [name for name in shown if name not in hidden]
        table = [[*columns, "marks"]]
        for row in self:
            table.append([*(cell(getattr(row, column)) for column in columns), "; ".join(row.marks)])
        return table


def _distinct(names: Sequence[str]) -> list[str]:
    """Returns the names, with ``_2``, ``_3`` and so on behind one that came before, unless that is another's name."""
    found: dict[str, None] = {}
    for name in names:
        number, chosen = 1, name
        while chosen in found or (number > 1 and chosen in names):
            number += 1
            chosen = f"{name}_{number}"
        found[chosen] = None
    return list(found)


def make_report(
    backends: Sequence[Backend], values: Sequence[GroupValues], order: Mapping[tuple[int, int], int]
) -> LayerReport:
    """Returns a report on the layers of all plans, with the weights and hyperparameters as they are now.

    Args:
        backends: of the plans.
        values: hyperparameters of every group.
        order: group and position of each layer → its place, from input to output.
    """
    placed: list[tuple[int, LayerRow]] = []
    for backend in backends:
        norms, stale = backend.report()
        for planned, row_norm_sq, gradient, steps in zip(
            backend.plan.layers, norms, _gradient_figures(backend), stale, strict=True
        ):
            layer = planned.layer
            row = _make_row(backend, planned, row_norm_sq, gradient, values[layer.group])
            placed.append((order[layer.group, layer.position], replace(row, stale_steps=steps)))
    rows = [row for _, row in sorted(placed, key=lambda item: item[0])]
    # In the relative scale rates follow the gradients, which may have any size.
    rates = [row.effective_lr for row in rows if math.isfinite(row.effective_lr) and row.backward_factor is not None]
    least = median(rates) / SMALL_LR if rates else 0.0
    return LayerReport(
        replace(row, at_small_lr=True) if row.scaled and row.effective_lr < least else row for row in rows
    )


@dataclass(frozen=True)
class _GradientFigures:
    """Of one layer in the relative scale: v_b, and what `LayerRow` has of the last step."""

    carried: float = math.nan
    norm: float | None = None
    growth: float | None = None


def _gradient_figures(backend: Backend) -> list[_GradientFigures]:
    if not backend.plan.options.is_relative:
        return [_GradientFigures()] * len(backend.plan.layers)
    found: list[_GradientFigures] = []
    for planned, (carried, measured) in zip(backend.plan.layers, backend.gradient_norms.report(), strict=True):
        if not planned.scaled:
            found.append(_GradientFigures())
            continue
        # v_b was carried on with q_b since.
        before = (carried - (1 - CARRIED_SHARE) * measured) / CARRIED_SHARE
        is_known = math.isfinite(before) and before > 0
        found.append(
            _GradientFigures(
                carried,
                math.sqrt(measured) if math.isfinite(measured) else None,
                measured / before if is_known else None,
            )
        )
    return found


def _make_row(
    backend: Backend,
    planned: PlannedLayer,
    row_norm_sq: float,
    gradient: _GradientFigures,
    group: GroupValues,
) -> LayerRow:
    """Returns the row of a layer, without stale steps."""
    layer, options, factor = planned.layer, backend.plan.options, planned.backward_factor
    scale, decay = 1.0, group.weight_decay
    if planned.scaled and options.is_relative:
        scale = relative_scale(row_norm_sq, factor, gradient.carried, options.eps, planned.is_vector)
        decay = scale * decay if backend.decays_first(planned) else decay
    elif planned.scaled:
        scale = layer_scale(row_norm_sq, factor, options.eps)
        decay = decay_scale(scale, factor, decay, options.decay)
    output_change = None
    if gradient.growth is not None and not planned.is_vector:
        output_change = group.lr * math.sqrt(gradient.growth / backend.plan.depth)
    return LayerRow(
        name=layer.name,
        rows=layer.rows,
        columns=layer.columns,
        scaled=planned.scaled,
        row_norm_sq=row_norm_sq,
        column_norm_sq=row_norm_sq * layer.rows / layer.columns,
        backward_factor=None if options.is_relative else factor,
        gradient_norm=gradient.norm,
        growth=gradient.growth,
        output_change=output_change,
        layer_scale=scale,
        effective_lr=group.lr * scale,
        decay_per_step=group.lr * decay,
        stale_steps=0,
        at_eps_floor=planned.scaled and not planned.is_vector and row_norm_sq < options.eps,
    )
