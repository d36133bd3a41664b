"""H_w of one unit behind some layers of a network, with and without batch normalization: exactly, and by (18)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.hessian.blocks import EPS, Spectrum, linear, spectrum
from experiments.hessian.residual import endless_batches
from experiments.models import initialise

UNITS = 96
LAYERS = 4
SAMPLES = 512

WITHOUT, PRINTED, EXACT = "no batch normalization", "batch normalization, (18) as printed", "batch normalization, exact"


def take_unit_spectra(units: int = UNITS, layers: int = LAYERS, samples: int = SAMPLES) -> dict[str, Spectrum]:
    """Takes the eigenvalues of H_w of a unit whose inputs come out of so many hidden layers of a new ReLU network.

    The data are digits. (18) is the local Hessian of the layer without its normalization, over the variance v of its
    output.
    """
    images, _ = next(endless_batches(seed=0, size=samples))
    unit = linear(torch.randn(1, units, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    norm = nn.BatchNorm1d(1, eps=EPS, affine=False, dtype=torch.float64)
    plain, of_normalized = (_outputs(images, units, layers, with_norm) for with_norm in (False, True))
    variance = unit(of_normalized).var(correction=0).detach()
    printed = spectrum(unit, of_normalized, "weight")
    return {
        WITHOUT: spectrum(unit, plain, "weight"),
        PRINTED: Spectrum(printed.eigenvalues / variance),
        EXACT: spectrum(nn.Sequential(unit, norm), of_normalized, "0.weight"),
    }


def _outputs(images: Tensor, units: int, layers: int, with_norm: bool) -> Tensor:
    hidden: list[nn.Module] = [nn.Flatten()]
    for inputs in (images[0].numel(), *[units] * (layers - 1)):
        norm = [nn.BatchNorm1d(units, affine=False)] if with_norm else []
        hidden += [nn.Linear(inputs, units, bias=False), *norm, nn.ReLU()]
    network = nn.Sequential(*hidden)
    initialise(network, seed=0)
    with torch.no_grad():
        result: Tensor = network.double()(images)
    return result
