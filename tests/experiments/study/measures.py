"""What the tests of the runner let its workers do in place of training; `setting` is a folder to leave word in."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from experiments.study.journal import Run
from experiments.study.run import Outcome


def killed_once(run: Run) -> Outcome:
    """The third call kills its worker."""
    calls = Path(run.setting) / "calls"
    with calls.open("a") as file:
        file.write("x")
    if calls.stat().st_size == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(run.lr, 1.0, 0.1)


def waits_for_word(run: Run) -> Outcome:
    """The run with seed 1 says which process does it, and waits for a file `go`."""
    folder = Path(run.setting)
    if run.seed == 1:
        (folder / "part").write_text(str(os.getpid()))
        (folder / "part").rename(folder / "waiting")
        end = time.monotonic() + 300
        while not (folder / "go").exists() and time.monotonic() < end:
            time.sleep(0.02)
    return Outcome(float(run.seed), 1.0, 0.1)
