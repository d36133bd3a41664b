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
from pathlib import Path
from typing import Any

from bench.machine import ROOT
from bench.turns import Spread


def train(checkout: Path) -> tuple[list[Any], float, float]:
    """Trains with the package of a checkout; returns losses and errors, and seconds by the clock and of a processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    package = "experiments" if (checkout / "experiments").is_dir() else "sasgd_fused.experiments"
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", package, "compare", "--seeds", "0", "--epochs", "5", "--out", out]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, check=True)
        runs: list[dict[str, Any]] = json.loads((Path(out) / "results.json").read_text())["runs"]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [(run["train_loss"], run["test_error"]) for run in runs], sum(run["seconds"] for run in runs), processor


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description="Time of training, as a ratio.")
    parser.add_argument("checkout", type=Path, help="of the version to compare with, with its extension built")
    parser.add_argument("--rounds", type=int, default=10, help="runs of each; two or more")
    chosen = parser.parse_args()
    checkouts = (ROOT, chosen.checkout.resolve())
    pairs = []
    for index in range(chosen.rounds):
        # Each goes first in every other round.
        runs = {checkout: train(checkout) for checkout in checkouts[:: 1 if index % 2 else -1]}
        pairs.append([runs[checkout] for checkout in checkouts])
    print(f"time by the clock, ours over theirs: {Spread.of([ours[1] / theirs[1] for ours, theirs in pairs])}")
    print(f"time of a processor, ours over theirs: {Spread.of([ours[2] / theirs[2] for ours, theirs in pairs])}")
    same = all(ours[0] == theirs[0] for ours, theirs in pairs)
    print(f"losses and errors: {'the same to the bit' if same else 'not the same'}")


if __name__ == "__main__":
    main()
