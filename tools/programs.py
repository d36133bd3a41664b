"""Runs programs with a time limit, and finds those of NVIDIA."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from tools.cuda import USUAL_PLACE, find_nvcc

ROOT = Path(__file__).resolve().parents[1]
GRACE_S = 30  # from the request to end to the end by force


@dataclass(frozen=True)
class Ended:
    """How a program ended; `code` is its exit status, `output` what it said, without the paths of this machine."""

    code: int
    output: str
    seconds: float
    in_time: bool

    @property
    def ok(self) -> bool:
        return self.in_time and self.code == 0

    def why(self, lines: int = 25) -> str:
        """Returns what happened, in the first line, and the end of the output."""
        reason = f"exit status {self.code}" if self.in_time else f"stopped after {self.seconds:.0f} s"
        return "\n".join([reason, *self.output.splitlines()[-lines:]])


def run(command: Sequence[str], limit: float, env: Mapping[str, str] | None = None) -> Ended:
    """Runs a program in the root of the repository for `limit` seconds at most.

    At the limit it is interrupted as by Ctrl-C, so that it writes down what it has so far. What it has started is ended
    with it.
    """
    start = monotonic()
    with _heeding_interrupts():
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            # Without the variable that has Triton's kernels run on the CPU.
            env={**{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}, **(env or {})},
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
            _kill_group(process)
            output, _ = process.communicate()
    finally:
        _kill_group(process)
    for place in sorted((str(ROOT), sys.prefix), key=len, reverse=True):  # one may lie in the other
        output = output.replace(place + os.sep, "")
    return Ended(process.returncode, output, monotonic() - start, in_time)


@contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """Has programs that are started heed SIGINT, though a shell that began this one with `&` has it ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _kill_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all of them have ended
        return
    process.wait()


def find_program(name: str) -> str | None:
    """Finds a program on PATH, in the toolkit of the nvcc that the build takes, or in a package from PyPI."""
    nvcc = find_nvcc()
    toolkits = [path.resolve().parents[1] for path in (nvcc, USUAL_PLACE) if path]
    packages = {Path(sysconfig.get_path(scheme)) for scheme in ("purelib", "platlib")}
    toolkits += [found for folder in packages for found in sorted(folder.glob("nvidia/*"))]
    places = [str(toolkit / folder) for toolkit in toolkits for folder in ("bin", name)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
