"""`spectral_density`: how the eigenvalues of an operator are distributed, without finding them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sasgd_fused.local.still import without_autocast
from sasgd_fused.options import is_positive_int


class Operator(Protocol):
    """What is needed of a symmetric matrix; `LocalHessian` has it."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """That of vectors."""
        ...

    @property
    def device(self) -> torch.device:
        """That of vectors."""
        ...

    def __matmul__(self, other: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Density:
    """Point masses in the places of eigenvalues.

    Attributes:
        nodes: the places, ascending, float64 on the CPU.
        weights: the fraction of the eigenvalues at each, in the same order; the sum is 1.
    """

    nodes: Tensor
    weights: Tensor

    def __repr__(self) -> str:
        return f"Density({len(self.nodes)} nodes from {float(self.nodes[0]):.4g} to {float(self.nodes[-1]):.4g})"

    def cdf(self, x: float | Tensor) -> Tensor:
        """Returns the fraction of the eigenvalues at or below x."""
        places = torch.searchsorted(self.nodes, torch.as_tensor(x, dtype=torch.float64), right=True)
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.weights.cumsum(0)])[places]

    def quantile(self, q: float | Tensor) -> Tensor:
        """Returns the smallest node at or below which lies the fraction q of the eigenvalues."""
        total = self.weights.cumsum(0)
        # The sum of all may have been rounded below 1.
        wanted = torch.as_tensor(q, dtype=torch.float64).clamp(max=float(total[-1]))
        return self.nodes[torch.searchsorted(total, wanted)]

    def histogram(self, bins: int | Tensor = 50) -> tuple[Tensor, Tensor]:
        """Returns the fraction of the eigenvalues in each bin, and the bins' edges.

        Args:
            bins: how many of equal width from the first node to the last; or the edges, ascending. The last bin has
                its right edge; what lies outside is not counted.
        """
        if isinstance(bins, int):
            bins = torch.linspace(float(self.nodes[0]), float(self.nodes[-1]), bins + 1, dtype=torch.float64)
        edges = bins.double()
        places = torch.searchsorted(edges, self.nodes, right=True) - 1
        places[self.nodes == edges[-1]] = len(edges) - 2
        inside = (places >= 0) & (places < len(edges) - 1)
        found = torch.zeros(len(edges) - 1, dtype=torch.float64)
        return found.index_add_(0, places[inside], self.weights[inside]), edges


def spectral_density(op: Operator, probes: int = 8, steps: int = 60, seed: int = 0) -> Density:
    """Estimates the distribution of the eigenvalues by stochastic Lanczos quadrature.

    Lanczos from a random unit vector v makes a tridiagonal matrix T of `steps` rows. The eigenvalues of T are the nodes
    and the squares of the first components of its eigenvectors the weights of a Gauss quadrature of v's measure:
    they have its moments vᵀHʲv up to j = 2 steps − 1. The mean over v is the distribution of the eigenvalues. All
    vectors are orthogonalized against all, twice, so that no eigenvalue comes again.

    It takes probes × steps products, and memory for `steps` vectors. Extreme eigenvalues come first; what lies close
    together is a few nodes with more weight. Nodes within 100 roundings of the largest of 0, which in float32
    is 1e-5 of it, are set to 0.

    Args:
        op: a symmetric operator, such as a `LocalHessian`: a shape, a dtype, a device and ``op @ vector``.
        probes: starts. The error of the measure falls with the root of probes × n.
        steps: Lanczos steps for each. The error of the distribution between the nodes falls with their number.
        seed: of the starts.

    Raises:
        ValueError: `probes` or `steps` is not a positive integer.
        TypeError: the operator is in 16 bits, whose rounding is as large as most eigenvalues.

    Example:
        >>> density = spectral_density(local_hessian(block, inputs))
        >>> density.cdf(0.0), density.quantile(0.5), density.nodes[-1]
    """
    if not is_positive_int(probes) or not is_positive_int(steps):
        raise ValueError(f"probes, steps: got {probes!r} and {steps!r}, want positive integers")
    check_wide("op", op.dtype)
    generator = torch.Generator().manual_seed(seed)
    found = []
    with without_autocast([op.device]):
        for _ in range(probes):
            start = torch.randn(op.shape[0], generator=generator, dtype=torch.float64)
            found.append(lanczos(op.__matmul__, start.to(op.device, op.dtype), steps))
    nodes, order = torch.cat([nodes for nodes, _ in found]).sort()
    weights = torch.cat([weights for _, weights in found])[order] / probes
    return Density(nodes, weights)


def check_wide(name: str, dtype: torch.dtype) -> None:
    """Refuses 16 bits.

    Raises:
        TypeError: it is not float32 or float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name}: got {dtype}, too coarse for a spectrum, want float32 or float64: model.float(), inputs.float()"
        )


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Returns the Gauss quadrature of a symmetric operator's spectral measure of one vector.

    Args:
        product: takes and returns a vector of one dimension.
        start: the vector.
        steps: nodes at most; fewer where the vector lies in a smaller invariant subspace.

    Returns:
        nodes and weights, float64 on the CPU; the weights sum to 1.
    """
    eps = torch.finfo(start.dtype).eps
    basis = (start / torch.linalg.vector_norm(start)).unsqueeze(0)
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, start.numel())):
        vector = product(basis[-1])
        diagonal.append(float(torch.dot(basis[-1].double(), vector.double())))
        for _ in range(2):
            vector = vector - basis.T @ (basis @ vector)
        norm = float(torch.linalg.vector_norm(vector))
        largest = max(map(abs, [*diagonal, *beside]))
        if len(diagonal) == min(steps, start.numel()) or norm <= 10 * eps * largest:
            break
        beside.append(norm)
        basis = torch.cat([basis, (vector / norm).unsqueeze(0)])
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside, dtype=torch.float64)
    matrix += torch.diag(off, 1) + torch.diag(off, -1) if beside else 0
    nodes, vectors = torch.linalg.eigh(matrix)
    nodes[nodes.abs() <= 100 * eps * nodes.abs().max()] = 0
    return nodes, vectors[0] ** 2
