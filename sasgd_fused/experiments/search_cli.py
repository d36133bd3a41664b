"""The command `search`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import optuna
from rich.console import Console

from sasgd_fused.experiments.arguments import (
    add_common,
    add_methods,
    check_folder,
    integer,
    take_methods,
    take_settings,
)
from sasgd_fused.experiments.data import ArchiveError
from sasgd_fused.experiments.presets import PRESETS
from sasgd_fused.experiments.search import SAMPLERS, SearchSettings, equal_budgets, measure, open_studies, search
from sasgd_fused.experiments.search_report import make_search_table, write_search_json

SEEDS = [100, 101, 102]


def add_search(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser("search", help="tune learning rate and weight decay of each method, budgets equal")
    add_common(command)
    add_methods(command, "those of the preset")
    seeds = " ".join(map(str, SEEDS))
    command.add_argument(
        "--seeds", type=integer(0), nargs="+", default=SEEDS, help=f"a trial is one run for each; default: {seeds}"
    )
    command.add_argument("--trials", type=integer(1), default=30, help="the budget of each method; default: 30")
    command.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="what draws the next trial; default: tpe")
    command.add_argument("--sampler-seed", type=integer(0), default=0, help="of its draws; default: 0")
    command.add_argument("--workers", type=integer(1), default=1, help="processes that train; default: 1")
    command.add_argument(
        "--out",
        type=Path,
        help="folder for the journal, which a search goes on from; default: runs/search-PRESET",
    )


def run_search(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs the command, or goes on where it was interrupted.

    Returns:
        The exit code.

    Raises:
        SystemExit: an argument is wrong, or contradicts the search that is to go on.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A search must not see what a comparison tests on.
    runs = take_settings(args, parser, dataset=f"{PRESETS[args.preset].settings.dataset}-tuning")
    settings = SearchSettings(runs, args.sampler, args.sampler_seed)
    methods = take_methods(args, parser)
    out = args.out or Path(f"runs/search-{args.preset}")
    check_folder(out, parser)
    out.mkdir(parents=True, exist_ok=True)
    journal = out / "search.journal"
    try:
        studies = open_studies(journal, settings, methods)
    except ValueError as error:
        parser.error(f"argument --out: {error}")
    console = Console()
    try:
        search(
            studies,
            settings,
            trials=args.trials,
            workers=args.workers,
            threads=args.threads,
            console=console,
            measure=partial(measure, root=args.root),
        )
    except ArchiveError as error:
        parser.error(f"argument --root: {error}")
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on.")
        return 130
    trials = equal_budgets(journal)
    path = out / "search.json"
    write_search_json(path, settings, trials)
    console.print(make_search_table(trials).to_terminal())
    console.print(f"settings: {path}, for compare --preset {args.preset} --settings {path}", soft_wrap=True)
    return 0
