"""What the tests of the search let its workers do in place of training; `dataset` is a folder to leave word in."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from experiments.compare import Settings
from experiments.search import Measurement


def valley(settings: Settings, name: str, params: Mapping[str, float]) -> Measurement:
    distance = abs(math.log10(params["lr"]) + 1) + abs(math.log10(params["weight_decay"]) + 3)
    (Path(settings.dataset) / str(os.getpid())).touch()
    return {"test_error": [distance, distance + 1], "train_loss": [0.5, None], "seconds": [0.1, 0.1]}


def slow_valley(settings: Settings, name: str, params: Mapping[str, float]) -> Measurement:
    """The first worker waits for a second one, so that both are at work."""
    result = valley(settings, name, params)
    end = time.monotonic() + 300
    while len(list(Path(settings.dataset).iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    return result


def killed_once(settings: Settings, name: str, params: Mapping[str, float]) -> Measurement:
    """The third trial kills its worker, the first time."""
    if _count_call(settings) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return valley(settings, name, params)


def stuck_in_the_third(settings: Settings, name: str, params: Mapping[str, float]) -> Measurement:
    """The third trial says in a file which process runs it, and does not end."""
    if _count_call(settings) == 3:
        part = Path(settings.dataset) / "part"
        part.write_text(str(os.getpid()))
        part.rename(Path(settings.dataset) / "stuck")
        time.sleep(3000)
    return valley(settings, name, params)


def _count_call(settings: Settings) -> int:
    calls = Path(settings.dataset) / "calls"
    with calls.open("a") as file:
        file.write("x")
    return calls.stat().st_size
