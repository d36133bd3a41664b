"""The layer report: what the optimizer does to each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from sasgd_fused.backends.base import Backend
from sasgd_fused.factors import decay_scale, layer_scale
from sasgd_fused.options import GroupValues

# From here on a step's decay overshoots; it diverged at 1.5.
LARGE_DECAY = 0.5


@dataclass(frozen=True)
class LayerRow:
    """One block as the next step will treat it.

    Attributes:
        name: the parameter's name, or its place if names are not known.
        rows: output units.
        columns: input units.
        scaled: whether its gradient is scaled: neither ``amend=False`` nor a plain head.
        row_norm_sq: ‖W‖²_{2,μ}, before the floor `eps`.
        column_norm_sq: ‖Wᵀ‖²_{2,μ} = row_norm_sq · rows / columns.
        backward_factor: m_b.
        layer_scale: s_b, 1 for a block that is not scaled.
        effective_lr: lr · s_b.
        decay_per_step: lr · d_b, or lr · λ for a block that is not scaled.
        stale_steps: steps that used the norm of weights that had been written unseen.
        at_eps_floor: whether row_norm_sq is below `eps`.
    """

    name: str
    rows: int
    columns: int
    scaled: bool
    row_norm_sq: float
    column_norm_sq: float
    backward_factor: float
    layer_scale: float
    effective_lr: float
    decay_per_step: float
    stale_steps: int
    at_eps_floor: bool

    @property
    def marks(self) -> list[str]:
        """What deserves a look."""
        marks = []
        if self.at_eps_floor:
            marks.append("at the eps floor")
        if self.decay_per_step > LARGE_DECAY:
            marks.append(f"decay per step over {LARGE_DECAY}")
        if self.stale_steps:
            marks.append(f"stale steps: {self.stale_steps}")
        return marks


class LayerReport(tuple[LayerRow, ...]):
    """A tuple of `LayerRow`, input first, that prints as a table."""

    def __str__(self) -> str:
        names = [field.name for field in fields(LayerRow) if field.type != "bool" and field.name != "stale_steps"]
        table = [[*names, "marks"]]
        for row in self:
            cells = [getattr(row, name) for name in names]
            texts = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
            table.append([*texts, "; ".join(row.marks)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for line in table:
            _, *numbers = (cell.rjust(width) for cell, width in zip(line[:-1], widths, strict=False))
            lines.append("  ".join([line[0].ljust(widths[0]), *numbers, line[-1]]).rstrip())
        return "\n".join(lines)


def make_report(backends: Sequence[Backend], values: Sequence[GroupValues]) -> LayerReport:
    """Reports on the blocks of all devices, with the weights and hyperparameters as they are now."""
    rows = []
    for backend in backends:
        plan = backend.plan
        norms = zip(plan.blocks, *backend.report(), strict=True)
        for planned, row_norm_sq, stale in norms:
            block, group = planned.block, values[planned.block.group]
            scale, decay = 1.0, group.weight_decay
            if planned.scaled:
                scale = layer_scale(row_norm_sq, planned.backward_factor, plan.options.eps)
                decay = decay_scale(scale, planned.backward_factor, decay, plan.options.decay)
            rows.append(
                LayerRow(
                    name=block.name,
                    rows=block.rows,
                    columns=block.columns,
                    scaled=planned.scaled,
                    row_norm_sq=row_norm_sq,
                    column_norm_sq=row_norm_sq * block.rows / block.columns,
                    backward_factor=planned.backward_factor,
                    layer_scale=scale,
                    effective_lr=group.lr * scale,
                    decay_per_step=group.lr * decay,
                    stale_steps=stale,
                    at_eps_floor=planned.scaled and row_norm_sq < plan.options.eps,
                )
            )
    return LayerReport(rows)
