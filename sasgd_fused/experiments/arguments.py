"""What the commands have in common on the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sasgd_fused.experiments.compare import Settings
from sasgd_fused.experiments.data import ROOT
from sasgd_fused.experiments.methods import METHODS, OPTIONS, why_unavailable
from sasgd_fused.experiments.presets import PRESETS

VARIANTS = f"paper with any of {', '.join(f'+{name}' for name in OPTIONS)}, in this order"


def add_common(command: argparse.ArgumentParser) -> None:
    """Adds what says which runs to make, and where."""
    command.add_argument(
        "--preset", choices=PRESETS, default="digits", help="data set, network and settings; default: digits"
    )
    command.add_argument("--epochs", type=integer(1), help="passes over the training images; default: the preset's")
    command.add_argument("--device", help="where to train, cuda for example; default: the preset's, cpu")
    # One thread: batches are too small to gain much from more, and the bits of a run depend on their number.
    command.add_argument("--threads", type=integer(1), default=1, help="of torch, in each process; default: 1")
    command.add_argument("--root", type=Path, default=ROOT, help=f"folder of the archives of CIFAR; default: {ROOT}")


def add_methods(command: argparse.ArgumentParser, default: str) -> None:
    """Adds the choice of methods."""
    plain = [name for name in METHODS if "+" not in name]
    command.add_argument(
        "--methods",
        choices=METHODS,
        nargs="+",
        metavar="METHOD",
        help=f"any of {', '.join(plain)}, and {VARIANTS}; default: {default}",
    )


def integer(least: int) -> Callable[[str], int]:
    """Makes the type of an argument that is an integer from a number on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, want an integer from {least} on")
        return int(text)

    return parse


def method_value(text: str) -> tuple[str, float]:
    """The type of an argument METHOD=VALUE."""
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name not in METHODS or not (0 <= value < math.inf):
        wanted = f"METHOD one of {', '.join(METHODS)} and VALUE a number from 0 on"
        raise argparse.ArgumentTypeError(f"got {text!r}, want METHOD=VALUE with {wanted}")
    return name, value


def take_methods(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """The methods chosen, each once, or those of the preset; ends with an error where one cannot be built here."""
    names = list(dict.fromkeys(args.methods or PRESETS[args.preset].methods))
    for name in names:
        if reason := why_unavailable(name):
            parser.error(f"argument --methods: {reason}")
    return names


def take_settings(args: argparse.Namespace, parser: argparse.ArgumentParser, **changed: Any) -> Settings:
    """The preset's settings with what the command line has otherwise, and with `changed` unless it is None."""
    for name in ("epochs", "device"):
        changed[name] = getattr(args, name)
    if args.seeds:
        changed["seeds"] = tuple(args.seeds)
        if twice := [seed for seed in args.seeds if args.seeds.count(seed) > 1]:
            parser.error(f"argument --seeds: got {twice[0]} twice, want different ones")
    changed = {key: value for key, value in changed.items() if value is not None}
    settings = replace(PRESETS[args.preset].settings, **changed)
    make_somewhere(settings.device, parser)
    return settings


def check_folder(path: Path, parser: argparse.ArgumentParser) -> None:
    """Ends with an error where the folder of --out cannot be made because a file is in its place."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        parser.error(f"argument --out: got {path}, but {there} is a file: want a folder")


def make_somewhere(device: str, parser: argparse.ArgumentParser) -> torch.Tensor:
    """Makes a tensor on a device, or ends with an error that names the argument."""
    try:
        return torch.zeros(1, device=device)
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA asserts that it has it
        parser.error(f"argument --device: {error}")
