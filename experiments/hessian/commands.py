"""The command `hessian`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from experiments.arguments import Parser, take_folder
from experiments.hessian.report import write_hessian_report

OUT = Path("runs/hessian")


def add_hessian_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds it to the commands of a parser."""
    command = commands.add_parser("hessian", help="show local Hessians: a report with pictures (docs/local-hessian.md)")
    command.set_defaults(run=_run)
    command.add_argument("--out", type=Path, default=OUT, help=f"folder for the report; default: {OUT}")


def _run(args: argparse.Namespace, parser: Parser) -> int:
    out = take_folder(args.out, parser)
    torch.set_num_threads(1)  # on which the bits of a training depend
    print(f"report: {write_hessian_report(out)}")
    return 0
