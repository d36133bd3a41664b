"""Comparisons of scale-amended SGD with other methods, and the search for their learning rates."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna
import torch
from rich.console import Console

from experiments.analysis import Comparison
from experiments.arguments import Parser, integer, take_folder
from experiments.autoencoder.commands import add_autoencoder_command
from experiments.cifar import ArchiveError
from experiments.compare import KINDS, Settings, choose, compare
from experiments.data import DATASETS, ROOT
from experiments.hessian.commands import add_hessian_command
from experiments.methods import METHODS, OPTIONS, Tuned, why_unavailable
from experiments.presets import PRESETS
from experiments.report import describe, write_report, write_results
from experiments.resume import Unfinished, UnfinishedError
from experiments.search import SAMPLERS, SearchSettings, equal_budgets, measure, open_studies, search
from experiments.search_report import make_search_table, take_best, write_search_json
from experiments.study.commands import add_commands
from experiments.tables import make_summary
from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import BACKENDS


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code; arguments are those after the program's name.

    Raises:
        SystemExit: an argument is wrong, with a message that names it.
    """
    parser = _make_parser()
    args = parser.parse_args(arguments)
    code: int = args.run(args, parser)
    return code


def _compare(args: argparse.Namespace, parser: Parser) -> int:
    variations = choose(tuple(args.vary))
    settings = _take_settings(args, parser, dataset=args.dataset, backend=args.backend, variations=variations)
    dataset = PRESETS[args.preset].settings.dataset
    if settings.dataset not in (dataset, f"{dataset}-tuning"):
        parser.error(
            f"argument --dataset: got {settings.dataset} for {args.preset}, want {dataset} or {dataset}-tuning"
        )
    with parser.error_of("--backend", RuntimeError):
        ScaleAmendedSGD([torch.zeros(1, device=settings.device)], backend=cast(Any, settings.backend))
    methods = _tune(args, parser, settings)
    console = Console()
    out = take_folder(args.out or Path(f"runs/compare-{args.preset}"), parser)
    with parser.error_of("--out", UnfinishedError), parser.error_of("--root", ArchiveError):
        torch.set_num_threads(args.threads)
        unfinished = Unfinished(out / "unfinished", describe(settings, methods), args.resume)
        results = compare(settings, methods, console, root=args.root, unfinished=unfinished)
    comparison = Comparison(settings, methods, results)
    figures = out / "results.json"
    write_results(figures, comparison)
    console.print(make_summary(comparison, brief=True).to_terminal())
    report = write_report(out, [figures])
    console.print(f"picture: {out / 'curves.png'}\nreport: {report}\nfigures: {figures}", soft_wrap=True)
    unfinished.remove()
    return 0


def _report(args: argparse.Namespace, parser: Parser) -> int:
    out = take_folder(args.out, parser)
    with parser.error_of("results", OSError, ValueError):
        print(f"report: {write_report(out, args.results)}")
    return 0


def _search(args: argparse.Namespace, parser: Parser) -> int:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A search must not see what a comparison tests on.
    runs = _take_settings(args, parser, dataset=f"{PRESETS[args.preset].settings.dataset}-tuning")
    settings = SearchSettings(runs, args.sampler, args.sampler_seed)
    methods = _take_methods(args, parser)
    out = take_folder(args.out or Path(f"runs/search-{args.preset}"), parser)
    out.mkdir(parents=True, exist_ok=True)
    journal, best = out / "search.journal", out / "search.json"
    with parser.error_of("--out", ValueError):
        studies = open_studies(journal, settings, methods)
    console = Console()
    budget = {"trials": args.trials, "workers": args.workers, "threads": args.threads}
    try:
        with parser.error_of("--root", ArchiveError):
            search(studies, settings, **budget, console=console, measure=partial(measure, root=args.root))
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on.")
        return 130
    trials = equal_budgets(journal)
    write_search_json(best, settings, trials)
    console.print(make_search_table(trials).to_terminal())
    console.print(f"settings: {best}, for compare --preset {args.preset} --settings {best}", soft_wrap=True)
    return 0


def _take_settings(args: argparse.Namespace, parser: Parser, **changed: Any) -> Settings:
    """Returns the preset's settings with what the command line has otherwise, and with `changed` unless it is None."""
    if twice := [seed for seed in args.seeds or () if args.seeds.count(seed) > 1]:
        parser.error(f"argument --seeds: got {twice[0]} twice, want different ones")
    changed |= {"epochs": args.epochs, "device": args.device, "seeds": args.seeds and tuple(args.seeds)}
    given = {key: value for key, value in changed.items() if value is not None}
    settings = replace(PRESETS[args.preset].settings, **given)
    with parser.error_of("--device", AssertionError, RuntimeError):  # a torch without CUDA asserts that it has it
        torch.zeros(1, device=settings.device)
    return settings


def _take_methods(args: argparse.Namespace, parser: Parser) -> list[str]:
    """Returns the methods chosen, each once, or those of the preset."""
    names = list(dict.fromkeys(args.methods or PRESETS[args.preset].methods))
    for name in names:
        if reason := why_unavailable(name):
            parser.error(f"argument --methods: {reason}")
    return names


def _tune(args: argparse.Namespace, parser: Parser, settings: Settings) -> dict[str, Tuned]:
    """Returns the methods with the rates that the command line gives, else a search, else the preset."""
    names = _take_methods(args, parser)
    lrs, decays = dict(args.lr), dict(args.weight_decay)
    for option, values in (("lr", lrs), ("weight-decay", decays)):
        if unknown := [name for name in values if name not in names]:
            parser.error(f"argument --{option}: got {unknown[0]}, which is not among --methods {' '.join(names)}")
    known: Mapping[str, Tuned] = PRESETS[args.preset].methods
    if args.settings is not None:
        wanted = [name for name in names if name not in lrs or name not in decays]
        with parser.error_of("--settings", OSError, ValueError):
            known = take_best(args.settings, wanted, settings)
    tuned = {}
    for name in names:
        base = known.get(name)
        lr = lrs.get(name, base and base.lr)
        weight_decay = decays.get(name, base and base.weight_decay)
        if lr is None or weight_decay is None:
            parser.error(
                f"argument --methods: got {name}, for which the preset {args.preset} has no tuned values: want "
                f"--settings of a search, or --lr {name}=VALUE and --weight-decay {name}=VALUE"
            )
        given = name in lrs or name in decays
        tuned[name] = base if base and not given else METHODS[name].tuned(lr, weight_decay, source="command line")
    return tuned


def _method_value(text: str) -> tuple[str, float]:
    """Parses an argument METHOD=VALUE."""
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name not in METHODS or not (0 <= value < math.inf):
        wanted = f"METHOD one of {', '.join(METHODS)} and VALUE a number from 0 on"
        raise argparse.ArgumentTypeError(f"got {text!r}, want METHOD=VALUE with {wanted}")
    return name, value


def _make_parser() -> Parser:
    parser = Parser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    tuning = commands.add_parser("search", help="tune learning rate and weight decay of each method, budgets equal")
    command = commands.add_parser("compare", help="train one network with several methods; table, picture and JSON")
    again = commands.add_parser("report", help="make report and pictures again from the JSON of comparisons")
    plain = ", ".join(name for name in METHODS if "+" not in name)
    variants = f"paper with any of {', '.join(f'+{name}' for name in OPTIONS)}, in this order"
    preset = "default: the preset's"
    # One thread: batches are too small to gain much from more, and the bits of a run depend on their number.
    for add in (tuning.add_argument, command.add_argument):
        add("--preset", choices=PRESETS, default="digits", help="data set, network and settings; default: digits")
        add("--epochs", type=integer(1), help=f"passes over the training images; {preset}")
        add("--device", help=f"where to train, cuda for example; {preset}, cpu")
        add("--threads", type=integer(1), default=1, help="of torch, in each process; default: 1")
        add("--root", type=Path, default=ROOT, help=f"folder of the archives of CIFAR; default: {ROOT}")
        methods = f"any of {plain}, and {variants}; default: those of the preset"
        add("--methods", choices=METHODS, nargs="+", metavar="METHOD", help=methods)

    tuning.set_defaults(run=_search)
    add = tuning.add_argument
    seeds = "a trial is one run for each; default: 100 101 102"
    add("--seeds", type=integer(0), nargs="+", default=[100, 101, 102], help=seeds)
    add("--trials", type=integer(1), default=30, help="the budget of each method; default: 30")
    add("--sampler", choices=SAMPLERS, default="tpe", help="what draws the next trial; default: tpe")
    add("--sampler-seed", type=integer(0), default=0, help="of its draws; default: 0")
    add("--workers", type=integer(1), default=1, help="processes that train; default: 1")
    journal = "folder for the journal, which a search goes on from; default: runs/search-PRESET"
    add("--out", type=Path, help=journal)

    command.set_defaults(run=_compare)
    add = command.add_argument
    add("--dataset", choices=DATASETS, help=f"the preset's or its -tuning; {preset}")
    add("--seeds", type=integer(0), nargs="+", help=f"one run for each; {preset}")
    add("--vary", choices=KINDS, nargs="+", default=[], help="also with other values of these; default: none")
    add("--backend", choices=BACKENDS, help="of ScaleAmendedSGD; default: the fastest that works")
    add("--settings", type=Path, help="learning rates and weight decays: search.json of `search`")
    for option, what in (("--lr", "learning rate"), ("--weight-decay", "weight decay")):
        what = f"another {what} for a method; repeatable; {preset}"
        add(option, type=_method_value, action="append", default=[], metavar="METHOD=VALUE", help=what)
    add("--out", type=Path, help="folder for report, pictures and JSON; default: runs/compare-PRESET")
    add("--resume", action="store_true", help="go on with what was stopped, if anything was")

    again.set_defaults(run=_report)
    add = again.add_argument
    add("results", type=Path, nargs="+", metavar="FILE", help="a results.json of `compare`")
    add("--out", type=Path, default=Path("runs/report"), help="folder for report and pictures; default: runs/report")

    add_commands(commands)
    add_hessian_command(commands)
    add_autoencoder_command(commands)
    return parser
