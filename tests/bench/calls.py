"""What tests have a child process do; without torch, so that the process starts at once."""

from __future__ import annotations

import os
import time


def process() -> int:
    return os.getpid()


def raises(words: str) -> None:
    raise ValueError(words)


def dies() -> None:
    os._exit(7)


def hangs() -> None:
    time.sleep(600)
