"""Spectral densities by Lanczos, and the Marchenko-Pastur law that random layers have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sasgd_fused.local import Density, MarchenkoPastur, local_hessian, spectral_density

DOUBLE = torch.float64
SHAPES = [(400, 800), (800, 400), (400, 400), (50, 100)]
# Kolmogorov-Smirnov distances to be expected at such sizes.
NEAR = {(400, 800): 0.01, (800, 400): 0.015, (400, 400): 0.015, (50, 100): 0.04}


@dataclass(frozen=True)
class Dense:
    """A matrix as an operator."""

    matrix: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.matrix), len(self.matrix))

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector


def spectrum(layer: nn.Linear) -> Tensor:
    """All eigenvalues of H_z for one sample, by the smaller of the two products."""
    values = torch.linalg.svdvals(layer.weight.detach().double()).square()
    return torch.cat([values, torch.zeros(layer.in_features - len(values), dtype=DOUBLE)])


def gaussian(rows: int, columns: int, std: float = 1.0, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("std", [1.0, 0.5])
def test_gaussian_layers_have_the_law(shape: tuple[int, int], std: float) -> None:
    """(10) and (11), of WᵀW / n_b and not of WᵀW."""
    values = spectrum(gaussian(*shape, std))
    law = MarchenkoPastur(shape[0] / shape[1], std**2)
    assert law.distance(values / shape[0]) < NEAR[shape]
    assert law.distance(values) > 0.4
    low, high = law.edges
    assert float(values.max() / shape[0]) == pytest.approx(high, rel=0.05 if shape[0] > 50 else 0.3)
    assert low == pytest.approx(std**2 * (1 - math.sqrt(shape[0] / shape[1])) ** 2 * shape[1] / shape[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_layers_with_unit_rows_have_the_law(shape: tuple[int, int]) -> None:
    """(19), as behind batch normalization of white inputs."""
    layer = gaussian(*shape)
    with torch.no_grad():
        layer.weight /= layer.weight.norm(dim=1, keepdim=True)
    law = MarchenkoPastur(shape[0] / shape[1], unit_rows=True)
    assert law.distance(spectrum(layer)) < NEAR[shape]


def test_other_initialisations() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(800, 400, bias=False)
    law = MarchenkoPastur(0.5, float(layer.weight.detach().var()))
    assert law.distance(spectrum(layer) / 400) < 0.01  # uniform, not Gaussian
    nn.init.orthogonal_(layer.weight)
    values = spectrum(layer)
    assert (values[:400] - 1).abs().max() < 1e-5
    assert MarchenkoPastur(0.5, float(layer.weight.detach().var())).distance(values / 400) > 0.2


def test_the_operator_has_the_edges() -> None:
    operator = local_hessian(gaussian(400, 800), torch.randn(1, 800))
    assert float(operator.largest() / 400) == pytest.approx(MarchenkoPastur(0.5).edges[1], rel=0.05)
    assert float(operator.largest()) == pytest.approx(float(spectrum(gaussian(400, 800)).max()), rel=1e-5)


@pytest.mark.parametrize(("probes", "steps", "bar"), [(4, 30, 0.05), (8, 60, 0.03)])
def test_the_density_of_a_layer(probes: int, steps: int, bar: float) -> None:
    operator = local_hessian(gaussian(400, 800), torch.randn(1, 800))
    density = spectral_density(operator, probes, steps)
    law = MarchenkoPastur(0.5)
    low, high = law.edges
    inside = torch.linspace(low, high, 62, dtype=DOUBLE)[1:-1]
    assert float((density.cdf(400 * inside) - law.cdf(inside)).abs().max()) < bar
    assert abs(float(density.cdf(0.0)) - law.mass_at_zero) < bar
    assert float(density.nodes[-1]) == pytest.approx(float(operator.largest()), rel=0.01)
    scaled = Density(density.nodes / 400, density.weights)
    assert law.distance(scaled) < bar + float(density.weights[density.nodes > 1].max())


def test_enough_steps_give_the_eigenvalues() -> None:
    torch.manual_seed(0)
    factor = torch.randn(7, 12, dtype=DOUBLE)
    matrix = factor.T @ factor
    density = spectral_density(Dense(matrix), probes=1, steps=50)
    # The null space is one node, after which the next vector is nothing.
    assert len(density.nodes) == 8 and density.nodes[0] == 0
    torch.testing.assert_close(density.nodes[1:], torch.linalg.eigvalsh(matrix)[5:], rtol=1e-10, atol=0)
    several = spectral_density(Dense(matrix), probes=200, steps=12)
    assert abs(float(several.cdf(0.0)) - 5 / 12) < 0.04
    identity = spectral_density(Dense(torch.eye(5)), probes=2)
    assert identity.nodes.tolist() == pytest.approx([1, 1], rel=1e-6) and identity.weights.tolist() == [0.5, 0.5]
    nothing = spectral_density(Dense(torch.zeros(5, 5)), probes=1)
    assert nothing.nodes.tolist() == [0]


def test_moments_are_those_of_the_starts() -> None:
    matrix = gaussian(60, 60).weight.detach().double()
    matrix = matrix + matrix.T
    density = spectral_density(Dense(matrix), probes=1, steps=5, seed=3)
    start = torch.randn(60, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    start /= start.norm()
    for power in range(10):
        moment = start @ torch.linalg.matrix_power(matrix, power) @ start
        assert float(density.weights @ density.nodes**power) == pytest.approx(float(moment), rel=1e-10)


def test_seeds() -> None:
    operator = Dense(torch.arange(30.0).diag())
    before = torch.get_rng_state()
    first, again, other = (spectral_density(operator, 2, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(first.nodes, again.nodes) and not torch.equal(first.nodes, other.nodes)
    assert torch.equal(torch.get_rng_state(), before)
    for probes, steps in ((0, 4), (2, 0)):
        with pytest.raises(ValueError, match=f"probes, steps: got {probes} and {steps}, want positive integers"):
            spectral_density(operator, probes, steps)


def test_reading_a_density() -> None:
    density = Density(torch.tensor([-1.0, 0.0, 2.0], dtype=DOUBLE), torch.tensor([0.25, 0.5, 0.25], dtype=DOUBLE))
    assert repr(density) == "Density(3 nodes from -1 to 2)"
    assert density.cdf(torch.tensor([-2.0, -1.0, 1.9, 2.0])).tolist() == [0, 0.25, 0.75, 1]
    assert density.quantile(torch.tensor([0.0, 0.25, 0.3, 0.75, 0.8, 1.0])).tolist() == [-1, -1, 0, 0, 2, 2]
    masses, edges = density.histogram(3)
    assert masses.tolist() == [0.25, 0.5, 0.25] and edges.tolist() == [-1, 0, 1, 2]
    masses, _ = density.histogram(torch.tensor([-0.5, 0.5, 1.5]))
    assert masses.tolist() == [0.5, 0]


LAWS = [MarchenkoPastur(0.5), MarchenkoPastur(2.0, 3.0), MarchenkoPastur(1.0), MarchenkoPastur(0.3, unit_rows=True)]


@pytest.mark.parametrize("law", LAWS)
def test_the_law_is_a_distribution(law: MarchenkoPastur) -> None:
    low, high = law.edges
    # Points that lie close together at the edges, where the density may be infinite.
    places = low + (high - low) * torch.linspace(0, math.pi / 2, 20001, dtype=DOUBLE).sin() ** 2
    middles = (places[1:] + places[:-1]) / 2
    masses = law.pdf(middles) * places.diff()
    assert float(masses.sum()) == pytest.approx(min(1, law.ratio), abs=1e-4)
    cdf = law.cdf(places)
    assert float((law.mass_at_zero + masses.cumsum(0) - cdf[1:]).abs().max()) < 1e-4
    assert float(cdf[-1]) == pytest.approx(1, abs=1e-12)
    assert law.cdf(torch.tensor([-1.0, 0.0, high + 1])).tolist() == pytest.approx([0, law.mass_at_zero, 1], abs=1e-12)
    assert law.pdf(torch.tensor([-1.0, high + 1])).tolist() == [0, 0]


def test_distances() -> None:
    """Exact values: of one point from a law, and of a law's own quantiles."""
    law = MarchenkoPastur(0.5)
    assert law.distance(torch.zeros(4)) == pytest.approx(0.5)
    # Rounding of zeros to either side is no distance.
    values = torch.cat([torch.tensor([-1e-9, 1e-9, 0.0]), torch.linspace(*law.edges, 3)])
    assert law.distance(values) < 0.25
    high = torch.full((3,), 10.0)
    assert law.distance(high) == pytest.approx(1)
    assert law.distance(Density(high[:1].double(), torch.ones(1, dtype=DOUBLE))) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MarchenkoPastur(0.0), "ratio: got 0.0, want a positive finite number"),
        (lambda: MarchenkoPastur(math.nan), "ratio: got nan, want a positive finite number"),
        (lambda: MarchenkoPastur(1.0, -1.0), "variance: got -1.0, want a positive finite number"),
        (lambda: MarchenkoPastur(1.0, 2.0, unit_rows=True), "variance: got 2.0, want 1 for unit rows"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
