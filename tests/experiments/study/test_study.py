"""The runner: it does what the journal lacks, interrupted and killed at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from rich.console import Console

from experiments.arguments import terminated_as_interrupted
from experiments.study.journal import Journal, Run, read_journal
from experiments.study.plan import plan_tuning
from experiments.study.run import Outcome
from experiments.study.settings import Setting
from experiments.study.study import run_missing
from tests.experiments.study.made_up import METHODS, SETTINGS, make_setting, use_threads, valley
from tests.experiments.study.measures import killed_once
from tests.processes import has_ended

QUIET = Console(quiet=True)
ROOT = Path(__file__).resolve().parents[3]
RUNS = plan_tuning(SETTINGS, METHODS)


def run_in_threads(path: Path, measure: Callable[[Run], Outcome], workers: int = 1, runs: list[Run] = RUNS) -> None:
    with pytest.MonkeyPatch.context() as patch, Journal(path, SETTINGS, Outcome.from_json) as journal:
        use_threads(patch)
        run_missing(runs, journal, measure, workers=workers, console=QUIET)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_the_journal_lacks_is_run_in_order(workers: int, tmp_path: Path) -> None:
    begun: list[Run] = []

    def measure(run: Run) -> Outcome:
        begun.append(run)
        return valley(run)

    run_in_threads(tmp_path / "journal", measure, workers, RUNS[5:10])
    run_in_threads(tmp_path / "journal", measure, workers, [*RUNS, *RUNS])
    assert sorted(map(RUNS.index, begun)) == list(range(len(RUNS)))
    if workers == 1:
        assert begun == RUNS[5:10] + RUNS[:5] + RUNS[10:]
    assert read_journal(tmp_path / "journal", Outcome.from_json) == {run: valley(run) for run in RUNS}
    run_in_threads(tmp_path / "journal", measure, workers)
    assert len(begun) == len(RUNS)


def test_a_run_that_fails_is_named_and_what_is_done_is_kept(tmp_path: Path) -> None:
    def measure(run: Run) -> Outcome:
        if run == RUNS[3]:
            raise ValueError("no such network")
        return valley(run)

    with pytest.raises(RuntimeError, match=r"Run\(.*seed=101.*\) failed: no such network"):
        run_in_threads(tmp_path / "journal", measure)
    assert list(read_journal(tmp_path / "journal", Outcome.from_json)) == RUNS[:3]


def test_what_is_under_way_at_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Journal.add

    def interrupt(journal: Journal[Outcome], run: Run, outcome: Outcome) -> None:
        add(journal, run, outcome)
        if run == RUNS[4]:
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_in_threads(tmp_path / "journal", valley, workers=3)
    done = read_journal(tmp_path / "journal", Outcome.from_json)
    assert set(RUNS[:5]) <= set(done)
    assert set(done) <= set(RUNS[:8])


def study_in(folder: Path) -> tuple[dict[str, Setting], list[Run]]:
    settings = {str(folder): make_setting(str(folder), "width")}
    return settings, [Run(str(folder), "sgd", 0.5, 0.0, seed, True) for seed in range(5)]


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_worker_that_is_killed_costs_no_run(killed: bool, tmp_path: Path) -> None:
    calls: list[Run] = []

    def broken_once(run: Run) -> Outcome:
        calls.append(run)
        if len(calls) == 3:
            raise BrokenProcessPool  # as the pool has it
        return Outcome(run.lr, 1.0, 0.1)

    settings, runs = study_in(tmp_path)
    with pytest.MonkeyPatch.context() as patch, Journal(tmp_path / "journal", settings, Outcome.from_json) as journal:
        if not killed:
            use_threads(patch)
        run_missing(runs, journal, killed_once if killed else broken_once, workers=1, console=QUIET)
    assert list(read_journal(tmp_path / "journal", Outcome.from_json)) == runs
    assert killed or calls == [*runs[:3], *runs[2:]]


def test_workers_that_are_always_killed_end_the_study(tmp_path: Path) -> None:
    def die(run: Run) -> Outcome:
        raise BrokenProcessPool

    with pytest.raises(RuntimeError, match=r"workers were killed 4 times, the last time near Run\(.*seed=100"):
        run_in_threads(tmp_path / "journal", die)


def test_to_be_terminated_is_to_be_interrupted() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert signal.getsignal(signal.SIGTERM) == before


PROGRAM = """
import signal, sys
from pathlib import Path
from rich.console import Console
from experiments.arguments import terminated_as_interrupted
from experiments.study.journal import Journal
from experiments.study.run import Outcome
from experiments.study.study import run_missing
from tests.experiments.study.measures import waits_for_word
from tests.experiments.study.test_study import study_in

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings, runs = study_in(folder)
    with Journal(folder / "journal", settings, Outcome.from_json) as journal, terminated_as_interrupted():
        run_missing(runs, journal, waits_for_word, workers=1, console=Console())
"""


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_is_ended_has_lost_nothing_that_was_done(kind: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "waiting", process)
        worker = int((tmp_path / "waiting").read_text())
        process.send_signal(kind)
        if kind == signal.SIGTERM:
            time.sleep(0.2)
            (tmp_path / "go").touch()
        process.wait(timeout=300)
        assert has_ended(worker)
    finally:
        process.kill()
    done = read_journal(tmp_path / "journal", Outcome.from_json)
    _, runs = study_in(tmp_path)
    assert list(done) == runs[: 2 if kind == signal.SIGTERM else 1]
    assert process.returncode != 0
