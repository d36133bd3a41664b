"""The command line of the experiments."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import BACKENDS
from sasgd_fused.experiments.compare import Settings, compare
from sasgd_fused.experiments.data import DATASETS
from sasgd_fused.experiments.methods import METHODS
from sasgd_fused.experiments.plot import draw_curves
from sasgd_fused.experiments.report import make_table, summarise, write_json


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: those after the program's name, None for the process's own.

    Returns:
        The exit code.

    Raises:
        SystemExit: an argument is wrong, with a message that names it.
    """
    parser = _make_parser()
    args = parser.parse_args(arguments)
    methods = {name: METHODS[name] for name in args.methods}
    for option, field in (("--lr", "lr"), ("--weight-decay", "weight_decay")):
        for name, value in getattr(args, field):
            if name not in methods:
                parser.error(f"argument {option}: got {name}, which is not among --methods {' '.join(methods)}")
            methods[name] = dataclasses.replace(methods[name], **{field: value})
    try:
        ScaleAmendedSGD([torch.zeros(1)], backend=args.backend)
    except RuntimeError as error:
        parser.error(f"argument --backend: {error}")

    torch.set_num_threads(args.threads)
    settings = Settings(args.dataset, seeds=tuple(args.seeds), epochs=args.epochs, backend=args.backend)
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    results = compare(settings, methods, console)
    summaries = summarise(results, methods)
    write_json(args.out / "results.json", settings, results, summaries)
    title = f"{settings.model} on {settings.dataset}"
    if len(settings.seeds) > 1:
        title += f": mean and ± one standard deviation over {len(settings.seeds)} seeds"
    draw_curves(args.out / "curves.png", title, results, methods)
    console.print(make_table(summaries))
    console.print(f"picture: {args.out / 'curves.png'}\nfigures: {args.out / 'results.json'}", soft_wrap=True)
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sasgd_fused.experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "compare",
        help="train one network with several methods; table, picture and JSON",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = Settings()
    command.add_argument("--dataset", choices=DATASETS, default=defaults.dataset, help="what to train and test on")
    command.add_argument("--seeds", type=_integer(0), nargs="+", default=list(defaults.seeds), help="one run for each")
    command.add_argument("--epochs", type=_integer(1), default=defaults.epochs, help="passes over the training images")
    command.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS), help="which to compare")
    command.add_argument("--backend", choices=BACKENDS, help="of ScaleAmendedSGD; default: the fastest that works")
    for option, what in (("--lr", "learning rate"), ("--weight-decay", "weight decay")):
        command.add_argument(
            option,
            type=_method_value,
            action="append",
            default=[],
            metavar="METHOD=VALUE",
            help=f"another {what} for a method; repeatable",
        )
    # One thread: batches are too small to gain much from more, and the bits of a run depend on their number.
    command.add_argument("--threads", type=_integer(1), default=1, help="of torch")
    command.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder for picture and JSON")
    return parser


def _integer(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, want an integer from {least} on")
        return int(text)

    return parse


def _method_value(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name not in METHODS or not (0 <= value < math.inf):
        wanted = f"METHOD one of {', '.join(METHODS)} and VALUE a number from 0 on"
        raise argparse.ArgumentTypeError(f"got {text!r}, want METHOD=VALUE with {wanted}")
    return name, value
