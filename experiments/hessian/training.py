"""Whether blocks of which one step leaves little train faster: deep networks with and without skips, on digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.analysis import Estimate
from experiments.hessian.blocks import MakeBlock, Sum, gaussian, he, orthogonal
from experiments.hessian.residual import endless_batches, train
from sasgd_fused.local import back_matching

UNITS = 64
BLOCKS = 10
STEPS = 150
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
SEEDS = range(5)


@dataclass(frozen=True)
class Kind:
    """A kind of block, z → skip(z) + scale · ReLU(W z).

    Attributes:
        layer: draws W.
        skip: draws the skip, which is not trained; None for none.
        scale: of the branch at first.
        with_norm: whether batch normalization stands before the ReLU.
    """

    layer: Callable[[int, int, torch.Generator], nn.Linear]
    skip: MakeBlock | None = None
    scale: float = 1.0
    with_norm: bool = False

    def make(self, units: int, generator: torch.Generator) -> nn.Module:
        """Makes a block with as many outputs as inputs."""
        layer = self.layer(units, units, generator)
        with torch.no_grad():
            layer.weight.mul_(self.scale)
        norm = [nn.BatchNorm1d(units, affine=False, dtype=torch.float64)] if self.with_norm else []
        branch = nn.Sequential(layer, *norm, nn.ReLU())
        if self.skip is None:
            return branch
        return Sum(self.skip(units, units, generator).requires_grad_(False), branch)


def identity(outputs: int, inputs: int, generator: torch.Generator) -> nn.Module:
    """Makes the identity."""
    return nn.Identity()


SMALL = 0.3
KINDS = {
    "Gaussian": Kind(gaussian),
    "Gaussian, He": Kind(he),
    "orthogonal": Kind(orthogonal),
    "orthogonal × √2": Kind(orthogonal, scale=2**0.5),
    "batch normalization": Kind(gaussian, with_norm=True),
    "identity skip": Kind(he, identity),
    "identity skip, branch × 0.3": Kind(he, identity, SMALL),
    "identity skip, batch normalization": Kind(gaussian, identity, with_norm=True),
    "orthogonal skip": Kind(he, orthogonal),
    "orthogonal skip, branch × 0.3": Kind(he, orthogonal, SMALL),
    "Gaussian skip": Kind(he, gaussian),
    "Gaussian skip, branch × 0.3": Kind(he, gaussian, SMALL),
}


@dataclass(frozen=True)
class Trained:
    """What a kind of block leaves of the signal, and how networks of it train.

    Attributes:
        left: ‖d − J Jᵀ d‖² / ‖d‖² at initialisation for the displacements of the loss, mean over blocks and seeds.
        lr: of the rates, the one with the lowest mean loss.
        loss: training loss in the last tenth of the steps at this rate, over the seeds.
    """

    left: float
    lr: float
    loss: Estimate


def make_network(kind: Kind, inputs: int, classes: int, seed: int, units: int, blocks: int) -> nn.Sequential:
    """Makes a network of an input layer, blocks of one kind and a head."""
    generator = torch.Generator().manual_seed(seed)
    hidden = [kind.make(units, generator) for _ in range(blocks)]
    head = gaussian(classes, units, generator)
    return nn.Sequential(nn.Flatten(), gaussian(units, inputs, generator), *hidden, head)


def take_training(
    kind: Kind,
    *,
    units: int = UNITS,
    blocks: int = BLOCKS,
    steps: int = STEPS,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
) -> Trained:
    """Trains networks of one kind of block at every rate and seed, and looks at what one step leaves before."""
    images, labels = next(endless_batches(seed=0))

    def make(seed: int) -> nn.Sequential:
        return make_network(kind, images[0].numel(), 10, seed, units, blocks)

    left = [
        mean(back_matching(list(make(seed)), images, lambda output: cross_entropy(output, labels)).remaining[2:-1])
        for seed in seeds
    ]
    losses = {lr: [train(make(seed), steps, lr, seed) for seed in seeds] for lr in rates}
    best = min(losses, key=lambda lr: (not torch.tensor(losses[lr]).isfinite().all(), mean(losses[lr])))
    return Trained(mean(left), best, Estimate.of(losses[best]))


def rank_correlation(trained: Sequence[Trained]) -> tuple[float, float]:
    """Returns Spearman's rank correlation of what is left with the loss, and its p-value."""
    result = spearmanr([one.left for one in trained], [one.loss.mean for one in trained])
    return float(result.statistic), float(result.pvalue)
