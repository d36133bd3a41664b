"""Has units measured by a process of their own, and goes on without those that bring it down."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic, sleep
from typing import TextIO

from bench.gpu.command import ROOT, environment, kill_group, tail
from bench.gpu.units import Unit

START_LIMIT_S = 60  # for importing torch and waking the device up
NO_TIME = "no time was left"

Record = Callable[[Unit, Mapping[str, object]], None]


@dataclass
class _Progress:
    """How far a worker has come."""

    over: int = 0  # units
    begun: bool = False  # the next one
    failed: bool = False  # likewise; it has said why
    heard: float = field(default_factory=monotonic)  # when the worker last said something


class Supervisor:
    """Runs workers until every unit is recorded.

    A contender that ends or hangs its worker is left out from then on: a kernel that never ends would otherwise be
    waited for on every network. Likewise its graphs, after one that could not be captured.

    Args:
        worker: the command of a worker; two paths are appended to it, see `worker.py`.
        record: called with a unit and its new figures, or with `{"error": why there are none}`.
        deadline: by `time.monotonic`; what is not measured then stays so.
    """

    def __init__(self, worker: Sequence[str], record: Record, deadline: float) -> None:
        self._worker = worker
        self._record = record
        self._deadline = deadline
        self._left_out: dict[str, str] = {}
        self._without_graph: dict[str, str] = {}

    def run(self, units: Sequence[Unit]) -> None:
        """Measure units, in as many processes as it takes."""
        left = list(units)
        while left := self._admit(left):
            left = left[self._run_worker(left) :]

    def _admit(self, units: Sequence[Unit]) -> list[Unit]:
        """What is still to be measured after the failures that were seen."""
        admitted = []
        for unit in units:
            if why := self._left_out.get(unit.contender):
                self._record(unit, {"error": why})
                continue
            why = self._without_graph.get(unit.contender)
            if why and "graph" in unit.parts:
                self._record(unit, {"graph_error": why})
                unit = replace(unit, parts=tuple(part for part in unit.parts if part != "graph"))
            admitted.append(unit)
        return admitted

    def _run_worker(self, units: Sequence[Unit]) -> int:
        """Have units measured by one process; returns how many are over, with figures or an error."""
        progress = _Progress()
        with tempfile.TemporaryDirectory() as folder:
            wanted, into, log = (Path(folder) / name for name in ("units.json", "reports", "log"))
            wanted.write_text(json.dumps([asdict(unit) for unit in units]))
            into.touch()
            with into.open() as reports, log.open("w") as output:
                process = subprocess.Popen(
                    [*self._worker, str(wanted), str(into)],
                    cwd=ROOT,
                    # The last words of a worker that dies must be in the log. And when the profiler's library is
                    # unloaded, a process with CUDA graphs may crash.
                    env=environment({"PYTHONUNBUFFERED": "1", "TEARDOWN_CUPTI": "0"}),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
                try:
                    ending = self._follow(process, reports, units, progress)
                finally:
                    kill_group(process)
            said = f"{ending}\n{tail(log.read_text(errors='replace'))}"

        if progress.over == len(units):
            return progress.over
        if ending == NO_TIME:
            return self._give_up(units, progress.over, NO_TIME)
        if progress.begun:
            unit = units[progress.over]
            if not progress.failed:
                self._record(unit, {"error": said})
            self._left_out[unit.contender] = f"left out, because it ended the run of {unit}"
            return progress.over + 1
        if progress.over == 0:
            return self._give_up(units, 0, said)
        return progress.over  # it wants the rest to be measured by a fresh process

    def _give_up(self, units: Sequence[Unit], over: int, why: str) -> int:
        for unit in units[over:]:
            self._record(unit, {"error": why})
        return len(units)

    def _follow(
        self, process: subprocess.Popen[str], reports: TextIO, units: Sequence[Unit], progress: _Progress
    ) -> str:
        """Take reports until the process ends or has to be ended; returns why it came to an end."""
        rest = ""
        while True:
            code = process.poll()  # before reading: then nothing that it wrote is missed
            *lines, rest = (rest + reports.read()).split("\n")
            for line in lines:
                self._take(json.loads(line), units, progress)
            if code is not None:
                return f"the process ended with status {code}"
            limit = units[progress.over].limit_s() if progress.begun else START_LIMIT_S
            if monotonic() - progress.heard > limit:
                return f"stopped after {limit} s without a word"
            if monotonic() > self._deadline:
                return NO_TIME
            sleep(0.02)

    def _take(self, report: Mapping[str, object], units: Sequence[Unit], progress: _Progress) -> None:
        progress.heard = monotonic()
        progress.begun = "done" not in report
        figures = report.get("figures")
        if isinstance(figures, dict):
            unit = units[progress.over]
            progress.failed = "error" in figures
            if "graph_error" in figures:
                self._without_graph[unit.contender] = f"left out after it failed on {unit}"
            self._record(unit, figures)
        if "done" in report:
            progress.over, progress.failed = progress.over + 1, False
