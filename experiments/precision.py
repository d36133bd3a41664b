"""Loss curves of 16-bit training beside float32's: `python -m experiments.precision [--seeds N] [--steps N]`.

A small network learns scikit-learn's digits with each way to store weights and momentum, from the same initialisation
on the same batches. The table shows the training loss, averaged over stretches of steps and over the seeds, as a ratio
to float32's; the last row, which rounds bfloat16 weights to nearest, is what the others are there to avoid.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.data import batches, digits
from experiments.models import initialise
from sasgd_fused import ScaleAmendedSGD, parameter_groups

STEPS = 2000
STRETCHES = 20
WIDTH = 128
# Small enough that most updates are below what a bfloat16 weight resolves.
LR = 0.01


@dataclass(frozen=True)
class Way:
    """How weights and momentum are stored, and what the network computes in.

    Attributes:
        options: of the optimizer.
        weights: dtype of the parameters.
        autocast: dtype of autocast, or None. float16, here or as weights, comes with a GradScaler.
    """

    options: dict[str, Any] = field(default_factory=dict)
    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None


_SMALL = {"momentum_dtype": torch.bfloat16, "rounding": "stochastic"}
BASELINE = "float32"
NEAREST = "bfloat16 weights, rounded to nearest"
WAYS: dict[str, Way] = {
    BASELINE: Way(),
    "autocast to bfloat16": Way(autocast=torch.bfloat16),
    "autocast to float16, GradScaler": Way(autocast=torch.float16),
    "float16 weights, masters, GradScaler": Way({"master_weights": True}, torch.float16),
    "bfloat16 weights, masters": Way({"master_weights": True}, torch.bfloat16),
    "bfloat16 weights, masters, bfloat16 momentum": Way({"master_weights": True, **_SMALL}, torch.bfloat16),
    "bfloat16 weights, stochastic rounding": Way({"rounding": "stochastic"}, torch.bfloat16),
    "float32 weights, bfloat16 momentum": Way(_SMALL),
    NEAREST: Way({}, torch.bfloat16),
}


def curve(way: Way, seed: int, steps: int = STEPS) -> Tensor:
    """Trains once; returns the training loss in `STRETCHES` stretches of steps."""
    data = digits()
    model = _make_network(data.test[0][0].numel(), data.classes)
    initialise(model, seed)
    for param in model.parameters():
        param.data = param.data.to(way.weights)
    optimizer = ScaleAmendedSGD(
        parameter_groups(model), LR, 0.9, weight_decay=5e-4, norms="freeze", head="plain", decay="shape", **way.options
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    scaler = torch.amp.GradScaler("cpu", enabled=torch.float16 in (way.autocast, way.weights))
    generator = torch.Generator().manual_seed(seed)
    losses: list[Tensor] = []
    while len(losses) < steps:
        for images, labels in batches(data, 64, generator):
            with torch.autocast("cpu", dtype=way.autocast, enabled=way.autocast is not None):
                logits = model(images.to(way.weights))
            loss = cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            losses.append(loss.detach())
    return torch.stack(losses[:steps]).reshape(STRETCHES, -1).mean(dim=1)


def mean_curve(name: str, seeds: Sequence[int], steps: int = STEPS) -> Tensor:
    """Returns the curve of a way, averaged over the seeds."""
    return torch.stack([curve(WAYS[name], seed, steps) for seed in seeds]).mean(dim=0)


def _make_network(inputs: int, classes: int) -> nn.Sequential:
    """Makes two hidden layers with batch normalization without scale and shift, whose statistics stay float32."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in in (inputs, WIDTH):
        layers += [nn.Linear(fan_in, WIDTH, bias=False), nn.BatchNorm1d(WIDTH, affine=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, classes, bias=False))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m experiments.precision", description="Loss curves of 16-bit training.")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each way")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run")
    chosen = parser.parse_args(arguments)
    if chosen.seeds < 1:
        parser.error(f"argument --seeds: got {chosen.seeds}, want 1 or more")
    if chosen.steps < STRETCHES or chosen.steps % STRETCHES:
        parser.error(f"argument --steps: got {chosen.steps}, want a multiple of {STRETCHES}")
    torch.set_num_threads(1)  # the bits of a run depend on their number
    shown = [STRETCHES * part // 10 for part in (0, 1, 2, 4, 6, 8)] + [STRETCHES - 1]
    ends = [(k + 1) * chosen.steps // STRETCHES for k in shown]
    print(f"| training loss up to step | {' | '.join(map(str, ends))} | largest deviation |")
    print(f"|---|{'---:|' * (len(ends) + 1)}")
    seeds = range(chosen.seeds)
    baseline = mean_curve(BASELINE, seeds, chosen.steps)
    print(f"| {BASELINE} | {' | '.join(f'{baseline[k]:.4f}' for k in shown)} | |")
    for name in WAYS:
        if name != BASELINE:
            ratio = mean_curve(name, seeds, chosen.steps) / baseline
            cells = " | ".join(f"× {ratio[k]:.3f}" for k in shown)
            print(f"| {name} | {cells} | {100 * (ratio - 1).abs().max():.1f} % |", flush=True)


if __name__ == "__main__":
    main()
