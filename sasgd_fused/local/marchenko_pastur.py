"""The Marchenko-Pastur law: the eigenvalues of the local Hessian of a layer with random weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sasgd_fused.local.density import Density


@dataclass(frozen=True)
class MarchenkoPastur:
    """The limit of the eigenvalues' distribution as a layer becomes wide.

    W has n_b rows and n_{b-1} columns, independent elements of mean 0 and variance σ², and c = n_b / n_{b-1}. The
    eigenvalues of WᵀW / n_b have the density (10, 11)::

        ν(λ) = c / (2πσ²) · √((c₊ − λ)(λ − c₋)) / λ    between c± = σ² (1 ± √c)² / c

    and, if c < 1, the mass 1 − c at 0.

    The paper has it for WᵀW, without 1/n_b, which is not so. With `unit_rows`, the eigenvalues of Σ_i ŵ_i ŵ_iᵀ over
    rows of length 1, as behind batch normalization (17), have (19), the same law on another scale::

        ν(λ) = √((c₊ − λ)(λ − c₋)) / (2πλ)    between c± = (1 ± √c)²;    the same mass at 0

    Args:
        ratio: c.
        variance: σ²; 1 for unit rows, which have no variance of their own.
        unit_rows: whether (19) is meant.

    Raises:
        ValueError: `ratio` or `variance` is not a positive finite number, or a variance is given for unit rows.

    Example:
        >>> layer = nn.Linear(800, 400, bias=False)
        >>> law = MarchenkoPastur(400 / 800, variance=float(layer.weight.var()))
        >>> matrix = local_hessian(layer, torch.randn(1, 800)).dense()
        >>> law.distance(torch.linalg.eigvalsh(matrix) / 400)
    """

    ratio: float
    variance: float = 1.0
    unit_rows: bool = False

    def __post_init__(self) -> None:
        for name, value in (("ratio", self.ratio), ("variance", self.variance)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value}, want a positive finite number")
        if self.unit_rows and self.variance != 1:
            raise ValueError(f"variance: got {self.variance}, want 1 for unit rows")

    @property
    def edges(self) -> tuple[float, float]:
        """(c₋, c₊)."""
        return self._scale * (1 - math.sqrt(self.ratio)) ** 2, self._scale * (1 + math.sqrt(self.ratio)) ** 2

    @property
    def mass_at_zero(self) -> float:
        """The fraction of the eigenvalues that are 0."""
        return max(0.0, 1 - self.ratio)

    def pdf(self, x: float | Tensor) -> Tensor:
        """Returns the density ν at x, without the mass at 0."""
        low, high = self.edges
        x = torch.as_tensor(x, dtype=torch.float64)
        root = ((high - x).clamp(min=0) * (x - low).clamp(min=0)).sqrt()
        return torch.where(root > 0, root / (2 * math.pi * self._scale * x), root)

    def cdf(self, x: float | Tensor) -> Tensor:
        """Returns the fraction of the eigenvalues at or below x, in closed form.

        With λ = a + b cos θ between the edges, ∫ ν dλ from λ to c₊ is::

            (a θ − b sin θ − 2 √(a² − b²) atan(√((a − b) / (a + b)) tan(θ/2))) / (2π scale)
        """
        low, high = self.edges
        x = torch.as_tensor(x, dtype=torch.float64)
        middle, half = (high + low) / 2, (high - low) / 2
        angle = torch.arccos(((x - middle) / half).clamp(-1, 1))
        inner = torch.atan2(math.sqrt(low) * torch.sin(angle / 2), math.sqrt(high) * torch.cos(angle / 2))
        above = middle * angle - half * torch.sin(angle) - 2 * math.sqrt(low * high) * inner
        found = 1 - above / (2 * math.pi * self._scale)
        return torch.where(x < low, self.mass_at_zero * (x >= 0).double(), found)

    def distance(self, eigenvalues: Tensor | Density) -> float:
        """Returns the Kolmogorov-Smirnov distance, the largest difference of the distribution functions.

        Args:
            eigenvalues: all of a matrix; those below 1e-6 of the largest count as 0. Or a `Density`, of which each
                node is a step of its own: its distance is about half the weight of a node at least.
        """
        if isinstance(eigenvalues, Tensor):
            nodes = eigenvalues.detach().double().cpu().flatten().sort().values
            weights = torch.full_like(nodes, 1 / len(nodes))
        else:
            nodes, weights = eigenvalues.nodes, eigenvalues.weights
        nodes = torch.where(nodes.abs() <= 1e-6 * nodes.abs().max(), 0.0, nodes)
        places, which = torch.unique(nodes, return_inverse=True)
        masses = torch.zeros_like(places).index_add_(0, which, weights)
        total = masses.cumsum(0)
        law = self.cdf(places)
        # Of the law only 0 has a mass, by which it jumps there.
        before = law - self.mass_at_zero * (places == 0).double()
        return float(torch.maximum((total - law).abs(), (total - masses - before).abs()).max())

    @property
    def _scale(self) -> float:
        """What (19) is multiplied by."""
        return 1.0 if self.unit_rows else self.variance / self.ratio
