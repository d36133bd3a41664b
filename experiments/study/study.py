"""A study at work: runs what its journal lacks, in processes of one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Generic

import torch
from rich.console import Console

from experiments.study.journal import Found, Journal, Run

MOST_DEATHS = 3  # of workers in one call, before it is taken for hopeless


def run_missing(
    runs: Iterable[Run],
    journal: Journal[Found],
    measure: Callable[[Run], Found],
    *,
    workers: int,
    console: Console,
) -> None:
    """Does the runs that the journal lacks.

    This process alone writes the journal; workers only train. Interrupted, it waits for the runs under way and writes
    them down. Killed, it loses them, and its workers end.

    Args:
        runs: what the journal shall have, in the order to begin them.
        journal: what is done.
        measure: does a run in a worker, which imports it by its name.
        workers: processes, each with one run at a time.
        console: where every run gets a line.

    Raises:
        RuntimeError: a run failed, or more than `MOST_DEATHS` workers were killed.
    """
    runs = dict.fromkeys(runs)
    missing = [run for run in runs if run not in journal.outcomes]
    keep = _Keeper(journal, console, len(missing))
    deaths = 0
    while missing:
        try:
            _run(missing, keep, workers, measure)
        except BrokenProcessPool as error:
            deaths += 1
            if deaths > MOST_DEATHS:
                raise RuntimeError(f"workers were killed {deaths} times, the last time near {missing[0]}") from error
            console.print("A worker was killed: what was under way runs again.")
        missing = [run for run in missing if run not in journal.outcomes]


class _Keeper(Generic[Found]):
    """Writes down what is done, and says how far the study is."""

    def __init__(self, journal: Journal[Found], console: Console, total: int) -> None:
        self._journal = journal
        self._console = console
        self._total = total
        self._done = 0
        self._start = time.monotonic()

    def __call__(self, run: Run, outcome: Found) -> None:
        self._journal.add(run, outcome)
        self._done += 1
        minutes = (time.monotonic() - self._start) / self._done * (self._total - self._done) / 60
        self._console.print(
            f"{self._done}/{self._total}, {minutes:.0f} min left: {run.setting}  {run.method}  lr {run.lr:.3g}  weight "
            f"decay {run.weight_decay:.3g}  seed {run.seed}: {outcome}",
            soft_wrap=True,
        )


def _run(
    runs: Sequence[Run], keep: Callable[[Run, Found], None], workers: int, measure: Callable[[Run], Found]
) -> None:
    """Does runs with new workers, as many at a time as there are of these."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(runs)), context, initializer=_prepare_worker)
    waiting = iter(runs)
    running: dict[Future[Found], Run] = {}
    try:
        while True:
            for run in islice(waiting, workers - len(running)):
                running[pool.submit(measure, run)] = run
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                keep(running[future], _result(future, running[future]))
                del running[future]
    finally:
        pool.shutdown()  # waits for the runs under way
        for future, run in running.items():
            if future.done() and future.exception() is None:
                keep(run, future.result())


def _result(future: Future[Found], run: Run) -> Found:
    try:
        return future.result()
    except BrokenProcessPool:
        raise
    except Exception as error:
        raise RuntimeError(f"{run} failed: {error}") from error


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent says when to end
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed: it would wait for its next run for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
