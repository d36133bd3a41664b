"""Time of a training step with preconditioned gradients against one without: `python -m bench.precondition`.

The autoencoder of the thesis's benchmark, 784-1000-500-250-30-250-500-1000-784 with sigmoids, on batches of 500 random
images. A step is forward, backward, what rewrites the gradients, and torch.optim.SGD with momentum. The covariance is
taken in one step of `--every`, so a turn is that many steps, and each turn has its part of that work. The time of a
processor is the steadier one on a busy machine, and on a GPU it is what the host takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from time import process_time_ns
from typing import Any

import torch
from torch import nn

from bench.clocks import clock_for
from bench.machine import machine
from bench.turns import Spread, paired_ratios, time_in_turns
from sasgd_fused.precondition import CovariancePreconditioner

WIDTHS = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
METHODS: dict[str, dict[str, Any] | None] = {
    "SGD": None,
    "SGD again": None,
    "centred": {"inverse": False},
    "covariance": {},
    "covariance, alpha max": {"alpha": "max", "loss_reduction": "mean"},
}


def autoencoder(widths: Sequence[int], device: str) -> nn.Sequential:
    """Makes linear layers with sigmoids between them, the same at every call."""
    torch.manual_seed(0)
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.Sigmoid())]
    return nn.Sequential(*layers[:-1]).to(device)


def make_turn(
    options: dict[str, Any] | None, widths: Sequence[int], batch: int, every: int, device: str
) -> tuple[Callable[[], None], list[int]]:
    """Returns a call that takes `every` training steps, and the list to which it adds its time of a processor."""
    model = autoencoder(widths, device)
    images = torch.rand(batch, widths[0], device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    preconditioner = None if options is None else CovariancePreconditioner(model, every=every, **options)
    spent: list[int] = []

    def take_turn() -> None:
        start = process_time_ns()
        for _ in range(every):
            optimizer.zero_grad()
            loss = (model(images) - images).square().sum(1).mean()
            loss.backward()
            if preconditioner:
                preconditioner.step()
            optimizer.step()
        spent.append(process_time_ns() - start)

    return take_turn, spent


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.precondition", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="N", help="default %(default)s")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each; two or more")
    chosen = parser.parse_args(arguments)
    where = machine(chosen.device)
    torch.set_num_threads(chosen.threads)
    made = {
        name: make_turn(options, chosen.widths, chosen.batch, chosen.every, chosen.device)
        for name, options in METHODS.items()
    }
    clock = clock_for(chosen.device)
    timers = {name: clock.timer(turn)[0] for name, (turn, _) in made.items()}
    times = time_in_turns(timers, chosen.rounds, seconds=0)
    spent = {name: samples[-len(times[name]) :] for name, (_, samples) in made.items()}  # without the warm-up
    kept = ("gpu", "cpu", "cores", "load average before", "torch", "commit")
    print(", ".join(f"{name}: {where[name]}" for name in kept if name in where))
    print(
        f"{'-'.join(map(str, chosen.widths))}, batch {chosen.batch}, every {chosen.every}, threads {chosen.threads}\n"
    )
    print("| | milliseconds a step | of SGD's, by the clock | of SGD's, of a processor |")
    print("|---|---|---|---|")
    for name in METHODS:
        milliseconds = Spread.of(times[name]).median / chosen.every / 1e6
        ratios = [Spread.of(paired_ratios(measured[name], measured["SGD"])) for measured in (times, spent)]
        print(f"| {name} | {milliseconds:.1f} | {ratios[0]} | {ratios[1]} |")


if __name__ == "__main__":
    main()
