"""What one step of size 1 does about a back-matching loss: for one block, and through a chain of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from experiments.hessian.blocks import PLAIN, SKIPS, MakeBlock, sample_spectrum, white
from sasgd_fused.local import BackMatching, back_matching, exact

SEEDS = range(5)
SAMPLES = 96
UNITS = 128
DAMPING = 1e-9  # of the exact solution, for what no change of the input brings about
DEPTH = 20


@dataclass(frozen=True)
class OneStep:
    """What one step of size 1 on the input does, medians over seeds.

    Attributes:
        left: ‖d − J Jᵀ d‖² / ‖d‖² for random d; above 1 the step makes the match worse.
        least: the same for the exact solution: what no change of the input brings about.
        largest: λ_max of H_z, of one sample.
        condition: C(J), of one sample.
        cosine: between the step Jᵀ d and the exact solution.
    """

    left: float
    least: float
    largest: float
    condition: float
    cosine: float


def take_step(make: MakeBlock, outputs: int, inputs: int, seeds: Sequence[int] = SEEDS) -> OneStep:
    """Takes the step for displacements of independent normal elements, at the output of a new block for each seed."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        block, batch = make(outputs, inputs, generator), white(SAMPLES, inputs, generator)
        step, solution = _match([block], batch, white(SAMPLES, outputs, generator))
        of_one = sample_spectrum(block, batch)
        largest, (cosine,) = float(of_one.eigenvalues[-1]), _cosines(step, solution)
        rows.append((step.remaining[0], solution.remaining[0], largest, of_one.condition, cosine))
    return OneStep(*map(median, zip(*rows, strict=True)))


def take_steps(units: int = UNITS, seeds: Sequence[int] = SEEDS) -> dict[str, OneStep]:
    """Takes the step for blocks of all kinds, as many outputs as inputs, and for plain ones that narrow and widen."""
    steps = {name: take_step(make, units, units, seeds) for name, make in (PLAIN | SKIPS).items()}
    for outputs, inputs in ((units // 2, units), (units, units // 2)):
        steps |= {
            f"{name}, {inputs} → {outputs}": take_step(make, outputs, inputs, seeds) for name, make in PLAIN.items()
        }
    return steps


def through_depth(
    make: MakeBlock, units: int = 96, depth: int = DEPTH, seeds: Sequence[int] = SEEDS[:3]
) -> list[float]:
    """Compares back-propagation's displacement with that of exact solutions all the way, after 1 to `depth` blocks.

    Returns:
        Cosines, medians over the seeds, the block at the output first.
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        blocks = [make(units, units, generator) for _ in range(depth)]
        batch, wanted = white(SAMPLES, units, generator), white(SAMPLES, units, generator)
        rows.append(_cosines(*_match(blocks, batch, wanted))[::-1])
    return [median(column) for column in zip(*rows, strict=True)]


def _match(blocks: Sequence[nn.Module], batch: Tensor, wanted: Tensor) -> tuple[BackMatching, BackMatching]:
    """Matches a displacement behind the last block by one step of size 1 for each block, and exactly."""

    def loss(output: Tensor) -> Tensor:
        return -(output * wanted).sum()

    # The last block has the loss itself; here it is the identity.
    found = [*blocks, nn.Identity()]
    return back_matching(found, batch, loss), back_matching(found, batch, loss, solver=exact(DAMPING))


def _cosines(first: BackMatching, second: BackMatching) -> list[float]:
    """Returns the cosine between the displacements of the input of each block, but the last."""
    found = []
    for one, other in zip(first.displacements[:-2], second.displacements[:-2], strict=True):
        assert one is not None
        assert other is not None
        found.append(float(cosine_similarity(one.flatten(), other.flatten(), dim=0)))
    return found
