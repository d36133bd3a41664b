"""The command `autoencoder`."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from rich.console import Console

from experiments.arguments import Parser, integer, take_folder, terminated_as_interrupted
from experiments.autoencoder.methods import METHODS
from experiments.autoencoder.plan import plan_evaluation, plan_tuning
from experiments.autoencoder.presets import PRESETS, Preset, load_images
from experiments.autoencoder.report import write_autoencoder_report
from experiments.autoencoder.training import Curve, train
from experiments.data import ROOT
from experiments.mnist import MissingDataError
from experiments.study.journal import Journal, Run
from experiments.study.study import run_missing

OUT = Path("runs/autoencoder")

_images = cache(load_images)


def measure(preset: Preset, root: Path, run: Run) -> Curve:
    """Trains once, as a run says."""
    return train(preset, METHODS[run.method], run.lr, run.seed, _images(preset, root))


def add_autoencoder_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds it to the commands of a parser."""
    what = "tune and compare optimizers on an autoencoder, by updates and by time; goes on if stopped"
    command = commands.add_parser("autoencoder", help=what)
    command.set_defaults(run=_run)
    add = command.add_argument
    add("--preset", choices=PRESETS, default="autoencoder-small", help="network and data; default: autoencoder-small")
    methods = f"any of {', '.join(METHODS)}; default: all"
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS), help=methods)
    damping = "λ of covariance preconditioning, and of KFAC at first; default: the preset's"
    add("--damping", type=float, help=damping)
    add("--workers", type=integer(1), default=1, help="processes that train, of one thread each; default: 1")
    add("--root", type=Path, default=ROOT, help=f"folder of MNIST's files, for autoencoder-mnist; default: {ROOT}")
    add("--out", type=Path, default=OUT, help=f"folder for journal, report and picture; default: {OUT}")


def _run(args: argparse.Namespace, parser: Parser) -> int:
    out = take_folder(args.out, parser)
    preset = PRESETS[args.preset]
    if args.damping is not None:
        if not 0 < args.damping < math.inf:
            parser.error(f"argument --damping: got {args.damping}, want a number above 0")
        preset = replace(preset, damping=args.damping)
    with parser.error_of("--preset", MissingDataError):
        load_images(preset, args.root)
    methods = list(dict.fromkeys(args.methods))
    console = Console()
    with parser.error_of("--out", OSError, ValueError):
        journal = Journal(out / f"{args.preset}.jsonl", {args.preset: preset}, Curve.from_json)
    train_missing = partial(
        run_missing,
        journal=journal,
        measure=partial(measure, preset, args.root),
        workers=args.workers,
        console=console,
    )
    try:
        with journal, terminated_as_interrupted():
            train_missing(plan_tuning(args.preset, methods))
            train_missing(plan_evaluation(args.preset, methods, journal.outcomes))
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on.")
        return 130
    print(f"report: {write_autoencoder_report(out, args.preset, preset, methods, journal.outcomes)}")
    return 0
