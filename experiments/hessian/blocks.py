"""The blocks whose local Hessians are shown, all in float64, and what is read from a local Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sasgd_fused.local import local_hessian

# Eigenvalues below this fraction of the largest count as zero: singular values of J below 1e-6 of the largest.
CUT_OFF = 1e-12
BRANCH = 0.3  # how large the branch beside a skip is, against a Gaussian layer with the variance 1 / inputs
EPS = 1e-12  # of batch normalization, too small to be seen; torch refuses 0

MakeBlock = Callable[[int, int, torch.Generator], nn.Module]


class Sum(nn.Module):
    """A block of two branches, z → skip(z) + branch(z)."""

    def __init__(self, skip: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.skip = skip
        self.branch = branch

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.skip(inputs) + self.branch(inputs)
        return result


class OneSample(nn.Module):
    """A block as a function of one sample of a batch, (1, units), of which batch normalization sees the others too."""

    def __init__(self, block: nn.Module, batch: Tensor, index: int) -> None:
        super().__init__()
        self.block = block
        self.before, self.after = batch[:index], batch[index + 1 :]

    def forward(self, sample: Tensor) -> Tensor:
        result: Tensor = self.block(torch.cat([self.before, sample, self.after]))
        return result


def linear(weight: Tensor) -> nn.Linear:
    """Makes a layer without biases of a weight (outputs, inputs)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def gaussian(outputs: int, inputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    """Makes a layer of independent normal weights with the variance gain / inputs."""
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return linear(weight * math.sqrt(gain / inputs))


def he(outputs: int, inputs: int, generator: torch.Generator) -> nn.Linear:
    """Makes a layer as He et al. (2015) do before a ReLU."""
    return gaussian(outputs, inputs, generator, gain=2.0)


def orthogonal(outputs: int, inputs: int, generator: torch.Generator) -> nn.Linear:
    """Makes a layer of orthonormal rows, or columns where there are fewer of them."""
    return linear(nn.init.orthogonal_(torch.empty(outputs, inputs, dtype=torch.float64), generator=generator))


def normalized(outputs: int, inputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Module:
    """Makes a Gaussian layer with batch normalization behind it."""
    norm = nn.BatchNorm1d(outputs, eps=EPS, affine=False, dtype=torch.float64)
    return nn.Sequential(gaussian(outputs, inputs, generator, gain), norm)


def identity_skip(outputs: int, inputs: int, generator: torch.Generator) -> nn.Module:
    """Makes I + 0.3 G."""
    return Sum(nn.Identity(), gaussian(outputs, inputs, generator, gain=BRANCH**2))


def orthogonal_skip(outputs: int, inputs: int, generator: torch.Generator) -> nn.Module:
    """Makes Q + 0.3 G."""
    return Sum(orthogonal(outputs, inputs, generator), gaussian(outputs, inputs, generator, gain=BRANCH**2))


def gaussian_skip(outputs: int, inputs: int, generator: torch.Generator) -> nn.Module:
    """Makes G + 0.3 G', whose skip keeps the length of a vector on average, too."""
    return Sum(gaussian(outputs, inputs, generator), gaussian(outputs, inputs, generator, gain=BRANCH**2))


PLAIN: dict[str, MakeBlock] = {
    "Gaussian, variance 1/n": gaussian,
    "Gaussian, variance 2/n": he,
    "orthogonal": orthogonal,
    "batch normalization": normalized,
}
SKIPS: dict[str, MakeBlock] = {
    "identity skip, I + 0.3 G": identity_skip,
    "orthogonal skip, Q + 0.3 G": orthogonal_skip,
    "Gaussian skip, G + 0.3 G'": gaussian_skip,
}


def white(samples: int, units: int, generator: torch.Generator) -> Tensor:
    """Draws inputs of independent standard normal units, (samples, units)."""
    return torch.randn(samples, units, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of a positive local Hessian, in ascending order, (n,)."""

    eigenvalues: Tensor

    @property
    def condition(self) -> float:
        """C(J) = σ_max / σ_min of the Jacobian, over singular values that are not zero (`CUT_OFF`)."""
        kept = self.eigenvalues[self.eigenvalues > CUT_OFF * self.eigenvalues[-1]]
        return float((kept[-1] / kept[0]).sqrt())

    @property
    def largest_over_mean(self) -> float:
        """λ_max / mean λ."""
        return float(self.eigenvalues[-1] / self.eigenvalues.mean())

    @property
    def effective_rank(self) -> float:
        """(Σ λ)² / Σ λ²."""
        return float(self.eigenvalues.sum() ** 2 / self.eigenvalues.square().sum())


def spectrum(block: nn.Module, inputs: Tensor, wrt: str = "input") -> Spectrum:
    """Takes the eigenvalues of a block's Gauss-Newton local Hessian by its whole input or by a parameter."""
    return Spectrum(torch.linalg.eigvalsh(local_hessian(block, inputs, wrt).dense()))


def sample_spectrum(block: nn.Module, batch: Tensor, index: int = 0) -> Spectrum:
    """Takes those of the diagonal block of H_z that belongs to one sample of the batch."""
    return spectrum(OneSample(block, batch, index), batch[index : index + 1])
