"""The command `search`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import optuna
from rich.console import Console

from sasgd_fused.experiments.compare import Settings
from sasgd_fused.experiments.data import DATASETS
from sasgd_fused.experiments.methods import METHODS
from sasgd_fused.experiments.search import SAMPLERS, SearchSettings, open_studies, search
from sasgd_fused.experiments.search_report import make_search_table, write_search_json

# A search must not see what a comparison tests on.
TUNING = [name for name in DATASETS if name.endswith("-tuning")]
SEEDS = [100, 101, 102]


def add_search(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], integer: Callable[[int], Callable[[str], int]]
) -> None:
    """Adds the command to the parser.

    Args:
        commands: where it goes.
        integer: makes the type of an argument that is an integer from a number on.
    """
    command = commands.add_parser(
        "search",
        help="tune learning rate and weight decay of each method with the same budget",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = Settings()
    command.add_argument("--dataset", choices=TUNING, default=TUNING[0], help="what to train on and choose by")
    command.add_argument("--seeds", type=integer(0), nargs="+", default=SEEDS, help="a trial is one run for each")
    command.add_argument("--epochs", type=integer(1), default=defaults.epochs, help="passes over the training images")
    command.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS), help="which to tune")
    command.add_argument("--trials", type=integer(1), default=30, help="the budget of each method")
    command.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="what draws the next trial")
    command.add_argument("--sampler-seed", type=integer(0), default=0, help="of its draws")
    command.add_argument("--workers", type=integer(1), default=1, help="processes that train, a trial each")
    command.add_argument("--threads", type=integer(1), default=1, help="of torch, in each worker")
    command.add_argument(
        "--out", type=Path, default=Path("runs/search"), help="folder for the journal, which a search goes on from"
    )


def run_search(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs the command, or goes on where it was interrupted.

    Returns:
        The exit code.

    Raises:
        SystemExit: an argument contradicts the search that is to go on.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = SearchSettings(
        Settings(args.dataset, seeds=tuple(args.seeds), epochs=args.epochs), args.sampler, args.sampler_seed
    )
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        studies = open_studies(args.out / "search.journal", settings, args.methods)
    except ValueError as error:
        parser.error(f"argument --out: {error}")
    console = Console()
    try:
        search(studies, settings, trials=args.trials, workers=args.workers, threads=args.threads, console=console)
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on.")
        return 130
    write_search_json(args.out / "search.json", settings, studies)
    console.print(make_search_table(studies))
    path = args.out / "search.json"
    console.print(f"settings: {path}, for compare --settings {path}", soft_wrap=True)
    return 0
