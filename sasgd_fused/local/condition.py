"""`condition_report`: how well a gradient step matches a target signal, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from sasgd_fused.local.arguments import Inputs
from sasgd_fused.local.capture import capture
from sasgd_fused.local.density import check_wide, spectral_density
from sasgd_fused.local.jacobian import Jacobian, jacobian_at
from sasgd_fused.options import is_positive_int
from sasgd_fused.text_table import aligned, as_html, cell

# Blocks up to so many inputs or outputs, of the whole batch, have their Jacobian formed.
EXACT = 512
# Singular values below that fraction of the largest count as 0, in blocks whose Jacobian is formed.
CUTOFF = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclass(frozen=True)
class ConditionRow:
    """One block: the spectrum of its Gauss-Newton matrix H_z = JᵀJ, J = ∂z_b/∂z_{b-1} over the whole batch.

    Attributes:
        name: of the block, as `capture` has it.
        inputs: n_{b-1}, elements of its input, of the whole batch.
        outputs: n_b, those of its output.
        left: E ‖(I − JJᵀ) d‖² / ‖d‖² over random d: what one gradient step of size 1, the step of back-propagation,
            leaves of the back-matching loss. More than 1 makes the match worse.
        best_left: the same with the best step size, 1 − effective_rank / n_b: what is lost by shape, not by scale.
        largest: λ_max.
        mean: tr H_z / n_{b-1}, the scalar m_{b,z} of the paper (20, 21).
        effective_rank: (Σλ)² / Σλ².
        condition: σ_max / σ_min of J, σ_min the smallest singular value above `cutoff` σ_max; None for a large block,
            of which all figures are estimates.
        cutoff: see there; None for a large block.
        rank: singular values above the cutoff; None for a large block.
    """

    name: str
    inputs: int
    outputs: int
    left: float
    best_left: float
    largest: float
    mean: float
    effective_rank: float
    condition: float | None
    cutoff: float | None
    rank: int | None

    @property
    def marks(self) -> list[str]:
        """What deserves a look, in words."""
        return ["one step makes the match worse"] if self.left > 1 else []


class ConditionReport(tuple[ConditionRow, ...]):
    """A tuple of `ConditionRow`, input first, that prints as a table, in a notebook too."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns the fields of each row, for ``pandas.DataFrame`` or JSON."""
        return [asdict(row) for row in self]

    def __repr__(self) -> str:
        return aligned(self._table()) if self else "no blocks"

    def _repr_html_(self) -> str:
        """Returns the table as HTML, which notebooks show."""
        return as_html(self._table()) if self else "no blocks"

    def _table(self) -> list[list[str]]:
        columns = [field.name for field in fields(ConditionRow)]
        rows = [[*map(cell, asdict(row).values()), "; ".join(row.marks)] for row in self]
        return [[*columns, "marks"], *rows]


def condition_report(
    model: nn.Module,
    inputs: Inputs,
    blocks: Iterable[str] | None = None,
    *,
    probes: int = 4,
    steps: int = 20,
    seed: int = 0,
) -> ConditionReport:
    """Returns, for each block, how well one gradient step on its back-matching loss matches a target signal.

    Back-propagation is one gradient step of size 1 on ½ ‖d − J d_z‖² (see `back_matching`): d_z = Jᵀd moves the block's
    output by JJᵀd where d was wanted. With the eigenvalues λ of JJᵀ, for random d, it leaves the fraction::

        left = mean of (1 − λ)² over the n_b of them

    which is 0 for an orthonormal J with n_b ≤ n_{b-1}, and at least 1 − rank(J) / n_b whatever the solver is. The
    report tells whether the scale of λ is wrong (`left` much above `best_left`) or its spread (`best_left` near 1). It
    is about the derivative at these inputs, in the mode of the model; that a well-conditioned block trains well is an
    observation of the paper, not a theorem.

    Blocks of at most 512 inputs or outputs over the batch have J formed, and are exact. For others all figures come
    from `probes` × `steps` products with JJᵀ (`spectral_density`), each of a few backward runs' time: the mean has a
    relative standard error of at most √(2 / (probes · effective rank)), the largest eigenvalue is approached
    from below. One sample says nearly what many do, but not with batch normalization: in training mode take as many
    samples as in training, because the variance of few is often small, and λ large.

    It is computed in the dtype of the network, float32 or float64: autocast is off inside, 16 bits are refused.

    Args:
        model: the network; it is left as it is (`still`). Gradients may be off (``torch.no_grad``).
        inputs: one batch, as `capture` takes it.
        blocks: names of modules; None takes layers with what follows them, and residual blocks, as `capture` does.
        probes: random vectors for a large block; 1 is enough, and faster, where effective ranks are above 1000.
        steps: Lanczos steps from each.
        seed: of the vectors.

    Returns:
        A row for each block, in the order in which they are called; prints as a table. A block whose output does not
        depend on its input, such as a learned position, has none.

    Raises:
        TypeError: as `capture`, or a block is in 16 bits.
        ValueError: as `capture`; a block that was named does not depend on its input, or has an output that is not
            finite; `probes` or `steps` is not a positive integer.
        RuntimeError: as `capture`, or an operator in a block cannot be differentiated twice.

    Example:
        >>> print(condition_report(model, images))
    """
    for argument, value in (("probes", probes), ("steps", steps)):
        if not is_positive_int(value):
            raise ValueError(f"{argument}: got {value!r}, want a positive integer")
    rows = []
    for name, call in capture(model, inputs, blocks).items():
        with _naming(name):
            jacobian = jacobian_at(call.module, call.inputs, "input")
            if jacobian.value.requires_grad:
                rows.append(_condition(name, jacobian, probes, steps, seed))
            elif blocks is not None:
                raise ValueError("its output does not depend on its input, want a block whose output does")
    return ConditionReport(rows)


@contextmanager
def _naming(block: str) -> Iterator[None]:
    """Has errors say in which block they arose."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        (kind,) = (kind for kind in (TypeError, ValueError, RuntimeError) if isinstance(error, kind))
        raise kind(f"block {block!r}: {error}") from error


def _condition(name: str, jacobian: Jacobian, probes: int, steps: int, seed: int) -> ConditionRow:
    for place, tensor in (("input", jacobian.point), ("output", jacobian.value)):
        check_wide(place, tensor.dtype)
    if not jacobian.value.isfinite().all():
        raise ValueError("its output is not finite, want numbers")
    if min(jacobian.point.numel(), jacobian.value.numel()) <= EXACT:
        return _exact_row(name, jacobian)
    density = spectral_density(_Outer(jacobian), probes, steps, seed)
    return _row(name, jacobian, density.nodes, density.weights)


@dataclass(frozen=True)
class _Outer:
    """JJᵀ, of the size of the block's output."""

    jacobian: Jacobian

    @property
    def shape(self) -> tuple[int, int]:
        return (self.jacobian.value.numel(),) * 2

    @property
    def dtype(self) -> torch.dtype:
        return self.jacobian.value.dtype

    @property
    def device(self) -> torch.device:
        return self.jacobian.value.device

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.jacobian.push(self.jacobian.pull(vector.reshape(self.jacobian.value.shape))).flatten()


def _exact_row(name: str, jacobian: Jacobian) -> ConditionRow:
    values = torch.linalg.svdvals(jacobian.dense().double().cpu())
    cutoff = CUTOFF[jacobian.value.dtype]
    kept = values[values > cutoff * values[0]]
    nodes = torch.zeros(jacobian.value.numel(), dtype=torch.float64)
    nodes[: len(values)] = values[: len(nodes)] ** 2
    condition = float(kept[0] / kept[-1]) if len(kept) else math.nan
    return _row(name, jacobian, nodes, torch.full_like(nodes, 1 / len(nodes)), condition, cutoff, len(kept))


def _row(
    name: str,
    jacobian: Jacobian,
    nodes: Tensor,
    weights: Tensor,
    condition: float | None = None,
    cutoff: float | None = None,
    rank: int | None = None,
) -> ConditionRow:
    inputs, outputs = jacobian.point.numel(), jacobian.value.numel()
    first, second = float(weights @ nodes), float(weights @ nodes**2)
    share = first**2 / second if second else 0.0
    return ConditionRow(
        name=name,
        inputs=inputs,
        outputs=outputs,
        left=float(weights @ (1 - nodes) ** 2),
        best_left=1 - share,
        largest=float(nodes.max()),
        mean=first * outputs / inputs,
        effective_rank=share * outputs,
        condition=condition,
        cutoff=cutoff,
        rank=rank,
    )
