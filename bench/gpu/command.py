"""Programs that are run with a time limit, and what they said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 10  # from the request to end to the end by force


@dataclass(frozen=True)
class Ended:
    """How a program ended; `code` is its exit status."""

    code: int
    output: str
    seconds: float
    in_time: bool

    @property
    def ok(self) -> bool:
        return self.in_time and self.code == 0

    def why(self) -> str:
        """What happened, in the first line, and the end of the output."""
        reason = f"exit status {self.code}" if self.in_time else f"stopped after {self.seconds:.0f} s"
        return f"{reason}\n{tail(self.output)}"


def run(command: Sequence[str], limit: float, env: Mapping[str, str] | None = None) -> Ended:
    """Run a program in the root of the repository for `limit` seconds at most.

    At the limit it is interrupted as by Ctrl-C, so that pytest writes down what it has so far.
    """
    start = monotonic()
    with _heeding_interrupts():
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    in_time = True
    try:
        output, _ = process.communicate(timeout=max(limit, 0))
    except subprocess.TimeoutExpired:
        in_time = False
        os.killpg(process.pid, signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            kill_group(process)
            output, _ = process.communicate()
    finally:
        kill_group(process)
    return Ended(process.returncode, output, monotonic() - start, in_time)


@contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """Has a program that is started heed interrupts, though a shell that ran this one with `&` has it ignore them."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's variables and some more, without the one that has Triton's kernels run on the CPU."""
    return {**{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}, **more}


def kill_group(process: subprocess.Popen[str]) -> None:
    """End a program that was started in a session of its own, with all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all of them have ended
        return
    process.wait()


def python(*arguments: str) -> list[str]:
    """The command that runs this Python with `arguments`."""
    return [sys.executable, *arguments]


def tail(text: str, lines: int = 25) -> str:
    """The last lines, without the paths of this machine."""
    for place in sorted((str(ROOT), sys.prefix), key=len, reverse=True):  # one may lie in the other
        text = text.replace(place + os.sep, "")
    return "\n".join(text.splitlines()[-lines:])
