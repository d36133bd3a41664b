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
from sasgd_fused.experiments.data import DATASETS, ROOT, ArchiveError
from sasgd_fused.experiments.methods import METHODS, Method
from sasgd_fused.experiments.plot import draw_curves
from sasgd_fused.experiments.presets import PRESETS
from sasgd_fused.experiments.report import describe, make_table, summarise, write_json
from sasgd_fused.experiments.search_cli import add_search, run_search
from sasgd_fused.experiments.search_report import take_best
from sasgd_fused.experiments.unfinished import Unfinished, UnfinishedError

# What the command line may have otherwise than the preset
SETTINGS = ("dataset", "epochs", "backend", "device")


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
    if args.command == "search":
        return run_search(args, parser)
    settings, methods = _choose(parser, args)
    torch.set_num_threads(args.threads)
    console = Console()
    try:
        unfinished = Unfinished(args.out / "unfinished", describe(settings, methods), args.resume)
        results = compare(settings, methods, console, root=args.root, unfinished=unfinished)
    except UnfinishedError as error:
        parser.error(f"argument --out: {error}")
    except ArchiveError as error:
        parser.error(f"argument --root: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    summaries = summarise(results, methods)
    write_json(args.out / "results.json", settings, results, summaries)
    title = f"{settings.model} on {settings.dataset}"
    if len(settings.seeds) > 1:
        title += f": mean and ± one standard deviation over {len(settings.seeds)} seeds"
    draw_curves(args.out / "curves.png", title, results, methods)
    console.print(make_table(summaries))
    console.print(f"picture: {args.out / 'curves.png'}\nfigures: {args.out / 'results.json'}", soft_wrap=True)
    unfinished.remove()
    return 0


def _choose(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Settings, dict[str, Method]]:
    """The preset, with what the command line has otherwise."""
    preset = PRESETS[args.preset]
    changed = {key: value for key in SETTINGS if (value := getattr(args, key)) is not None}
    if args.seeds:
        changed["seeds"] = tuple(args.seeds)
    settings = dataclasses.replace(preset.settings, **changed)
    fitting = (preset.settings.dataset, f"{preset.settings.dataset}-tuning")
    if settings.dataset not in fitting:
        parser.error(f"argument --dataset: got {settings.dataset} for {args.preset}, want {' or '.join(fitting)}")
    names = args.methods or preset.methods
    methods = {name: preset.methods.get(name, METHODS[name]) for name in names}
    if args.settings is not None:
        try:
            methods = take_best(args.settings, methods, settings.seeds)
        except (OSError, ValueError) as error:
            parser.error(f"argument --settings: {error}")
    for option, field in (("--lr", "lr"), ("--weight-decay", "weight_decay")):
        for name, value in getattr(args, field):
            if name not in methods:
                parser.error(f"argument {option}: got {name}, which is not among --methods {' '.join(methods)}")
            methods[name] = dataclasses.replace(methods[name], **{field: value})
    try:
        somewhere = torch.zeros(1, device=settings.device)
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA asserts that it has it
        parser.error(f"argument --device: {error}")
    try:
        ScaleAmendedSGD([somewhere], backend=settings.backend)
    except RuntimeError as error:
        parser.error(f"argument --backend: {error}")
    return settings, methods


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sasgd_fused.experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    add_search(commands, _integer)
    command = commands.add_parser("compare", help="train one network with several methods; table, picture and JSON")
    command.add_argument(
        "--preset", choices=PRESETS, default="digits", help="data set, network and settings; default: digits"
    )
    preset = "default: the preset's"
    command.add_argument("--dataset", choices=DATASETS, help=f"the preset's or its -tuning; {preset}")
    command.add_argument("--seeds", type=_integer(0), nargs="+", help=f"one run for each; {preset}")
    command.add_argument("--epochs", type=_integer(1), help=f"passes over the training images; {preset}")
    command.add_argument("--methods", choices=METHODS, nargs="+", help=f"which to compare; {preset}")
    command.add_argument("--backend", choices=BACKENDS, help="of ScaleAmendedSGD; default: the fastest that works")
    command.add_argument("--settings", type=Path, help="learning rates and weight decays: search.json of `search`")
    command.add_argument("--device", help=f"where to train, cuda for example; {preset}, cpu")
    for option, what in (("--lr", "learning rate"), ("--weight-decay", "weight decay")):
        command.add_argument(
            option,
            type=_method_value,
            action="append",
            default=[],
            metavar="METHOD=VALUE",
            help=f"another {what} for a method; repeatable; {preset}",
        )
    # One thread: batches are too small to gain much from more, and the bits of a run depend on their number.
    command.add_argument("--threads", type=_integer(1), default=1, help="of torch; default: 1")
    command.add_argument("--root", type=Path, default=ROOT, help=f"folder of the archives of CIFAR; default: {ROOT}")
    command.add_argument(
        "--out", type=Path, default=Path("runs/compare"), help="folder for picture and JSON; default: runs/compare"
    )
    command.add_argument("--resume", action="store_true", help="go on with what was stopped, if anything was")
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
