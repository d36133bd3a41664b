"""Print which of the optimizer's functions one warm step calls: `python -m tools.trace_step`.

The step is that of two linear layers. What is counted are Python functions of sasgd_fused, without
comprehensions. A move is a call of a function that lies in another file than the one called before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

import sasgd_fused
from sasgd_fused import ScaleAmendedSGD, parameter_groups

PACKAGE = Path(sasgd_fused.__file__).parent
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
RECOMMENDED = {"norms": "freeze", "head": "plain", "decay": "shape"}
CASES: dict[str, dict[str, Any]] = {
    "native, defaults": {"backend": "native"},
    "native, recommended options": {"backend": "native", **RECOMMENDED},
    "foreach": {"backend": "foreach"},
    "reference": {"backend": "reference"},
}


class Call(NamedTuple):
    """A call of one of the package's functions.

    Attributes:
        file: below the package.
        function: its name, with its class where Python knows that.
    """

    file: str
    function: str


def main() -> None:
    """Prints a table of counts, and for each case the functions in the order of their calls, a line for each stay."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    calls = {name: calls_of(warm_step(**options)) for name, options in CASES.items()}
    print("| one warm step, 2 linear layers | calls | files | moves between files |\n|---|---:|---:|---:|")
    for name, of_case in calls.items():
        files = {call.file for call in of_case}
        print(f"| {name} | {len(of_case)} | {len(files)} | {len(list(stays(of_case))) - 1} |")
    for name, of_case in calls.items():
        print(f"\n{name}\n")
        for file, functions in stays(of_case):
            print(f"    {file:<28} {', '.join(functions)}")


def warm_step(**options: Any) -> Callable[[], object]:
    """Returns a step of an optimizer that has taken some.

    Args:
        options: the optimizer's.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    optimizer = ScaleAmendedSGD(parameter_groups(model), lr=0.01, momentum=0.9, weight_decay=1e-4, **options)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    for _ in range(3):
        optimizer.step()
    return optimizer.step


def calls_of(function: Callable[[], object]) -> list[Call]:
    """Returns the package's functions that are called, in their order."""
    calls = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name not in COMPREHENSIONS and PACKAGE in Path(code.co_filename).parents:
            file = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            calls.append(Call(file, getattr(code, "co_qualname", code.co_name)))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls


def stays(calls: Sequence[Call]) -> Iterator[tuple[str, list[str]]]:
    """Yields each file that a step comes to, with the functions that are called before it goes to another."""
    for file, of_file in groupby(calls, key=lambda call: call.file):
        yield file, [call.function for call in of_file]


if __name__ == "__main__":
    main()
