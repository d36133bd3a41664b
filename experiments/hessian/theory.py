"""Spectra of H_z of random layers beside the Marchenko-Pastur law, equations (10), (11) and (19)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.hessian.blocks import gaussian, normalized, orthogonal, sample_spectrum, spectrum, white
from sasgd_fused.local import MarchenkoPastur

SEEDS = range(5)
WIDTHS = (25, 50, 100, 200, 400)
SAMPLES = 96  # that batch normalization sees
WIDE = 4.0  # the larger of two variances


@dataclass(frozen=True)
class Spectra:
    """Eigenvalues of H_z / n_b of layers with n_b outputs from 2 n_b inputs.

    Attributes:
        outputs: n_b.
        linear: variance of the weights, times n_b / n_{b-1} → eigenvalues.
        normalized: the same for a layer with batch normalization, for one sample, of H_z itself.
        orthogonal: of H_z itself.
    """

    outputs: int
    linear: dict[float, Tensor]
    normalized: dict[float, Tensor]
    orthogonal: Tensor


def take_spectra(outputs: int = 400) -> Spectra:
    """Takes the spectra of a layer without and with batch normalization, at two variances of the weights."""
    inputs = 2 * outputs
    generator = torch.Generator().manual_seed(0)
    one, batch = white(1, inputs, generator), white(SAMPLES, inputs, generator)

    def of_linear(variance: float) -> Tensor:
        layer = gaussian(outputs, inputs, generator.manual_seed(1), gain=variance * inputs)
        return spectrum(layer, one).eigenvalues / outputs

    def of_normalized(variance: float) -> Tensor:
        block = normalized(outputs, inputs, generator.manual_seed(1), gain=variance * inputs)
        return sample_spectrum(block, batch).eigenvalues

    return Spectra(
        outputs,
        {variance: of_linear(variance) for variance in (1.0, WIDE)},
        {variance: of_normalized(variance) for variance in (1.0, WIDE)},
        spectrum(orthogonal(outputs, inputs, generator), one).eigenvalues,
    )


@dataclass(frozen=True)
class Distances:
    """Kolmogorov-Smirnov distances to the law, by outputs, one for each seed."""

    linear: dict[int, list[float]]
    normalized: dict[int, list[float]]


def take_distances(widths: Sequence[int] = WIDTHS, seeds: Sequence[int] = SEEDS) -> Distances:
    """Measures how far spectra of finite layers with half as many outputs as inputs are from the law."""

    def of_linear(outputs: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        layer = gaussian(outputs, 2 * outputs, generator, gain=2 * outputs)
        eigenvalues = spectrum(layer, white(1, 2 * outputs, generator)).eigenvalues / outputs
        return MarchenkoPastur(0.5).distance(eigenvalues)

    def of_normalized(outputs: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        batch = white(SAMPLES, 2 * outputs, generator)
        eigenvalues = sample_spectrum(normalized(outputs, 2 * outputs, generator), batch).eigenvalues
        return MarchenkoPastur(0.5, unit_rows=True).distance(eigenvalues)

    return Distances(
        *(
            {width: [distance(width, seed) for seed in seeds] for width in widths}
            for distance in (of_linear, of_normalized)
        )
    )
