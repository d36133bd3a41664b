"""The command line of the experiments."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import BACKENDS
from sasgd_fused.experiments.analysis import Comparison
from sasgd_fused.experiments.arguments import (
    add_common,
    add_methods,
    check_folder,
    integer,
    make_somewhere,
    method_value,
    take_methods,
    take_settings,
)
from sasgd_fused.experiments.compare import Settings, compare
from sasgd_fused.experiments.data import DATASETS, ArchiveError
from sasgd_fused.experiments.methods import METHODS, Tuned
from sasgd_fused.experiments.presets import PRESETS
from sasgd_fused.experiments.report import write_report
from sasgd_fused.experiments.results import describe, write_results
from sasgd_fused.experiments.search_cli import add_search, run_search
from sasgd_fused.experiments.search_report import take_best
from sasgd_fused.experiments.tables import make_summary
from sasgd_fused.experiments.unfinished import Unfinished, UnfinishedError
from sasgd_fused.experiments.variations import KINDS, choose


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
    if args.command == "report":
        return _run_report(args, parser)
    return _run_compare(args, parser)


def _run_compare(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    settings, methods = _choose(parser, args)
    torch.set_num_threads(args.threads)
    console = Console()
    out = args.out or Path(f"runs/compare-{args.preset}")
    check_folder(out, parser)
    try:
        unfinished = Unfinished(out / "unfinished", describe(settings, methods), args.resume)
        results = compare(settings, methods, console, root=args.root, unfinished=unfinished)
    except UnfinishedError as error:
        parser.error(f"argument --out: {error}")
    except ArchiveError as error:
        parser.error(f"argument --root: {error}")
    out.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(settings, methods, results)
    write_results(out / "results.json", comparison)
    console.print(make_summary(comparison, brief=True).to_terminal())
    report = write_report(out, [out / "results.json"])
    picture = out / "curves.png"
    console.print(f"picture: {picture}\nreport: {report}\nfigures: {out / 'results.json'}", soft_wrap=True)
    unfinished.remove()
    return 0


def _run_report(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    check_folder(args.out, parser)
    try:
        report = write_report(args.out, args.results)
    except (OSError, ValueError) as error:
        parser.error(f"argument results: {error}")
    print(f"report: {report}")
    return 0


def _choose(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Settings, dict[str, Tuned]]:
    """The preset, with what the command line has otherwise."""
    preset = PRESETS[args.preset]
    variations = choose(tuple(args.vary))
    settings = take_settings(args, parser, dataset=args.dataset, backend=args.backend, variations=variations)
    fitting = (preset.settings.dataset, f"{preset.settings.dataset}-tuning")
    if settings.dataset not in fitting:
        parser.error(f"argument --dataset: got {settings.dataset} for {args.preset}, want {' or '.join(fitting)}")
    try:
        ScaleAmendedSGD([make_somewhere(settings.device, parser)], backend=settings.backend)
    except RuntimeError as error:
        parser.error(f"argument --backend: {error}")
    names = take_methods(args, parser)
    given = {option: dict(getattr(args, option)) for option in ("lr", "weight_decay")}
    for option, values in given.items():
        if unknown := [name for name in values if name not in names]:
            name = option.replace("_", "-")
            parser.error(f"argument --{name}: got {unknown[0]}, which is not among --methods {' '.join(names)}")
    known = dict(preset.methods)
    if args.settings is not None:
        try:
            known = take_best(
                args.settings, [name for name in names if not all(name in of for of in given.values())], settings
            )
        except (OSError, ValueError) as error:
            parser.error(f"argument --settings: {error}")
    return settings, {name: _with_rates(parser, args.preset, name, known.get(name), given) for name in names}


def _with_rates(
    parser: argparse.ArgumentParser,
    preset: str,
    name: str,
    known: Tuned | None,
    given: Mapping[str, Mapping[str, float]],
) -> Tuned:
    """A method with what the command line gives, and else with what is known."""
    lr = given["lr"].get(name, known.lr if known else None)
    weight_decay = given["weight_decay"].get(name, known.weight_decay if known else None)
    if lr is None or weight_decay is None:
        parser.error(
            f"argument --methods: got {name}, for which the preset {preset} has no tuned values: want --settings of a "
            f"search, or --lr {name}=VALUE and --weight-decay {name}=VALUE"
        )
    if known and not any(name in values for values in given.values()):
        return known
    return METHODS[name].tuned(lr, weight_decay, source="command line")


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sasgd_fused.experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    add_search(commands)
    command = commands.add_parser("compare", help="train one network with several methods; table, picture and JSON")
    add_common(command)
    add_methods(command, "those of the preset")
    preset = "default: the preset's"
    command.add_argument("--dataset", choices=DATASETS, help=f"the preset's or its -tuning; {preset}")
    command.add_argument("--seeds", type=integer(0), nargs="+", help=f"one run for each; {preset}")
    command.add_argument(
        "--vary", choices=KINDS, nargs="+", default=[], help="also with other values of these; default: none"
    )
    command.add_argument("--backend", choices=BACKENDS, help="of ScaleAmendedSGD; default: the fastest that works")
    command.add_argument("--settings", type=Path, help="learning rates and weight decays: search.json of `search`")
    for option, what in (("--lr", "learning rate"), ("--weight-decay", "weight decay")):
        command.add_argument(
            option,
            type=method_value,
            action="append",
            default=[],
            metavar="METHOD=VALUE",
            help=f"another {what} for a method; repeatable; {preset}",
        )
    command.add_argument("--out", type=Path, help="folder for report, pictures and JSON; default: runs/compare-PRESET")
    command.add_argument("--resume", action="store_true", help="go on with what was stopped, if anything was")
    command = commands.add_parser("report", help="make report and pictures again from the JSON of comparisons")
    command.add_argument("results", type=Path, nargs="+", metavar="FILE", help="a results.json of `compare`")
    command.add_argument(
        "--out", type=Path, default=Path("runs/report"), help="folder for report and pictures; default: runs/report"
    )
    return parser
