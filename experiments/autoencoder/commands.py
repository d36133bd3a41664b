"""The command `autoencoder`."""

from __future__ import annotations

import argparse
from functools import cache, partial
from pathlib import Path

from rich.console import Console
from torch import Tensor

from experiments.arguments import Parser, integer, take_folder, terminated_as_interrupted
from experiments.autoencoder.methods import METHODS
from experiments.autoencoder.plan import plan_evaluation, plan_tuning
from experiments.autoencoder.presets import PRESETS, load_images
from experiments.autoencoder.report import write_autoencoder_report
from experiments.autoencoder.training import Curve, train
from experiments.data import ROOT
from experiments.mnist import MissingDataError
from experiments.study.journal import Journal, Run
from experiments.study.study import run_missing

OUT = Path("runs/autoencoder")

_images = cache(load_images)


def measure(root: Path, run: Run) -> Curve:
    """Trains once, as a run says."""
    preset = PRESETS[run.setting]
    images: Tensor = _images(preset, root)
    return train(preset, METHODS[run.method], run.lr, run.seed, images)


def add_autoencoder_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds it to the commands of a parser."""
    what = "tune and compare optimizers on an autoencoder, by updates and by time; goes on if stopped"
    command = commands.add_parser("autoencoder", help=what)
    command.set_defaults(run=_run)
    add = command.add_argument
    add("--preset", choices=PRESETS, default="autoencoder-small", help="network and data; default: autoencoder-small")
    methods = f"any of {', '.join(METHODS)}; default: all"
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS), help=methods)
    add("--workers", type=integer(1), default=1, help="processes that train, of one thread each; default: 1")
    add("--root", type=Path, default=ROOT, help=f"folder of MNIST's files, for autoencoder-mnist; default: {ROOT}")
    add("--out", type=Path, default=OUT, help=f"folder for journal, report and picture; default: {OUT}")


def _run(args: argparse.Namespace, parser: Parser) -> int:
    out = take_folder(args.out, parser)
    with parser.error_of("--preset", MissingDataError):
        load_images(PRESETS[args.preset], args.root)
    methods = list(dict.fromkeys(args.methods))
    console = Console()
    with parser.error_of("--out", OSError, ValueError):
        journal = Journal(out / f"{args.preset}.jsonl", PRESETS, Curve.from_json)
    with journal:
        try:
            with terminated_as_interrupted():
                for runs in (plan_tuning, partial(plan_evaluation, curves=journal.outcomes)):
                    work = partial(measure, args.root)
                    run_missing(runs(args.preset, methods), journal, work, workers=args.workers, console=console)
        except KeyboardInterrupt:
            console.print("Interrupted. The same command goes on.")
            return 130
        print(f"report: {write_autoencoder_report(out, args.preset, methods, journal.outcomes)}")
    return 0
