"""Time of the demo's training against that of another checkout: `python -m bench.training CHECKOUT [--rounds N]`.

Both train the same, a short run in a process of its own, and take turns; the figures are medians of paired ratios: of
the time that the runs took, and of the time that the process had a processor, its start included, which on a busy
machine is the steadier one but leaves out waiting for the disk. It says too whether losses and errors are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.turns import Spread

HERE = Path(__file__).parents[1]


def train(checkout: Path) -> tuple[list[Any], float, float]:
    """Trains with the package of a checkout; returns losses and errors, and seconds by the clock and of a processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as out:
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        package = "experiments" if (checkout / "experiments").is_dir() else "sasgd_fused.experiments"
        command = [sys.executable, "-m", package, "compare", "--seeds", "0", "--epochs", "5", "--out", out]
        subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, check=True)
        runs: list[dict[str, Any]] = json.loads((Path(out) / "results.json").read_text())["runs"]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [(run["train_loss"], run["test_error"]) for run in runs], sum(run["seconds"] for run in runs), processor


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the ratio."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description="Time of training, as a ratio.")
    parser.add_argument("checkout", type=Path, help="of the version to compare with, with its extension built")
    parser.add_argument("--rounds", type=int, default=10, help="runs of each; two or more")
    chosen = parser.parse_args(arguments)
    checkouts = (HERE, chosen.checkout.resolve())
    clock, processor, same = [], [], True
    for index in range(chosen.rounds):
        # Each goes first in every other round.
        runs = {checkout: train(checkout) for checkout in checkouts[:: 1 if index % 2 else -1]}
        ours, theirs = (runs[checkout] for checkout in checkouts)
        clock.append(ours[1] / theirs[1])
        processor.append(ours[2] / theirs[2])
        same &= ours[0] == theirs[0]
    for name, ratios in (("by the clock", clock), ("of a processor", processor)):
        print(f"time {name}, ours over theirs: {Spread.of(ratios)}")
    print(f"losses and errors: {'the same to the bit' if same else 'not the same'}")


if __name__ == "__main__":
    main()
