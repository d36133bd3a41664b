"""What the commands have in common: a parser, and types of arguments."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """A parser for arguments that can turn out to be wrong when they are used."""

    @contextmanager
    def error_of(self, argument: str, *kinds: type[Exception]) -> Iterator[None]:
        """Has an exception of some kinds end the program with a message that names the argument."""
        try:
            yield
        except kinds as error:
            self.error(f"argument {argument}: {error}")


def integer(least: int) -> Callable[[str], int]:
    """Returns the type of an argument that is an integer from a number on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, want an integer from {least} on")
        return int(text)

    return parse


def take_folder(path: Path, parser: Parser) -> Path:
    """Returns a folder that can be made, if it is not there."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        parser.error(f"argument --out: got {path}, but {there} is a file: want a folder")
    return path


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Has SIGTERM interrupt as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
