"""The commands `study`, which runs the study or goes on with it, and `study-report`, which says what came out."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from experiments.arguments import Parser, integer, take_folder, terminated_as_interrupted
from experiments.cifar import ArchiveError
from experiments.mnist import MissingDataError
from experiments.study.journal import Journal, Run, read_journal
from experiments.study.methods import ABLATIONS, STUDIED, StudiedMethod
from experiments.study.plan import plan_evaluation, plan_tuning
from experiments.study.report import write_study_report
from experiments.study.run import Outcome, run_once
from experiments.study.settings import SETTINGS
from experiments.study.study import run_missing
from experiments.study.tasks import load_task

PHASES = ("tuning", "evaluation")
KINDS = ("studied", "ablations")
OUT = Path("runs/study")
JOURNAL = "one-learning-rate.jsonl"


def measure(run: Run) -> Outcome:
    """Trains and tests once, as a run says."""
    method = (STUDIED | ABLATIONS)[run.method]
    return run_once(SETTINGS[run.setting], method, run.lr, run.weight_decay, run.seed, tuning=run.tuning)


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds both to the commands of a parser."""
    study = commands.add_parser("study", help="train every network with every method at every rate; goes on if stopped")
    report = commands.add_parser("study-report", help="make tables and picture of the study again from its journal")
    study.set_defaults(run=_study)
    add = study.add_argument
    questions = list(dict.fromkeys(setting.varies for setting in SETTINGS.values()))
    settings = f"settings, or all of a question: {', '.join(questions)}; default: all"
    add("--settings", nargs="+", choices=[*questions, *SETTINGS], metavar="SETTING", default=questions, help=settings)
    add("--phase", choices=PHASES, help="only this part; default: one after the other")
    add("--workers", type=integer(1), default=1, help="processes that train, of one thread each; default: 1")
    methods = f"any of {', '.join(STUDIED)}; or ablations, or any of {', '.join(ABLATIONS)}; default: "
    choices = [*KINDS, *STUDIED, *ABLATIONS]
    add("--methods", nargs="+", choices=choices, metavar="METHOD", default=["studied"], help=f"{methods}the first")
    report.add_argument("--methods", nargs="+", choices=choices, metavar="METHOD", default=KINDS, help=f"{methods}all")
    for command, what in ((study, "file that it goes on with"), (report, "file of `study`")):
        command.add_argument("--out", type=Path, default=OUT, help=f"folder for the report; default: {OUT}")
        command.add_argument("--journal", type=Path, help=f"{what}; default: {JOURNAL} in this folder")
    report.set_defaults(run=_report)


def _study(args: argparse.Namespace, parser: Parser) -> int:
    out = take_folder(args.out, parser)
    path = args.journal or out / JOURNAL
    settings = {name for name, setting in SETTINGS.items() if {name, setting.varies} & set(args.settings)}
    studied, ablations = _chosen(args.methods)
    methods = studied | ablations
    with parser.error_of("--settings", ArchiveError, MissingDataError):
        for setting in (SETTINGS[name] for name in settings):
            load_task(setting.task, tuning=True, classes=setting.classes)
    console = Console()
    with parser.error_of("--journal", OSError, ValueError):
        journal = Journal(path, SETTINGS, Outcome.from_json)
    try:
        with journal, terminated_as_interrupted():
            for phase in (args.phase,) if args.phase else PHASES:
                if phase == "tuning":
                    runs = plan_tuning(SETTINGS, methods)
                else:
                    runs = plan_evaluation(SETTINGS, methods, journal.outcomes)
                chosen = [run for run in runs if run.setting in settings]
                run_missing(chosen, journal, measure, workers=args.workers, console=console)
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on.")
        return 130
    return _write(out, path, STUDIED, ABLATIONS)


def _report(args: argparse.Namespace, parser: Parser) -> int:
    out = take_folder(args.out, parser)
    path = args.journal or out / JOURNAL
    with parser.error_of("--journal", OSError, ValueError):
        read_journal(path, Outcome.from_json)
    return _write(out, path, *_chosen(args.methods))


def _chosen(names: Iterable[str]) -> tuple[dict[str, StudiedMethod], dict[str, StudiedMethod]]:
    """Returns the methods and the ablations that are named, by themselves or by their kind."""
    studied, ablations = (
        {name: method for name, method in of_kind.items() if {name, kind} & set(names)}
        for kind, of_kind in zip(KINDS, (STUDIED, ABLATIONS), strict=True)
    )
    return studied, ablations


def _write(
    out: Path, journal: Path, studied: Mapping[str, StudiedMethod], ablations: Mapping[str, StudiedMethod]
) -> int:
    report = write_study_report(
        out, journal.stem, read_journal(journal, Outcome.from_json), SETTINGS, studied, ablations
    )
    print(f"report: {report}")
    return 0
