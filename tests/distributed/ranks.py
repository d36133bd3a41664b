"""Runs a function in several processes that form one gloo group on the CPU, and brings back what each returned."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch.distributed as dist

# A rank is forked from a process that has these loaded and does nothing else: to load them takes seconds, and so does
# what the tests' own conftest looks for, compilers.
_PRELOADED = ["tests.conftest", "torch.distributed.optim", "torch._dynamo.backends.common"]
# How long the others go on after a failure: what waits for the failed rank fails in this time too, and says where.
_GRACE_S = 2.0


class RankError(Exception):
    """Not every rank returned; the message tells what became of each that did not."""


def run_ranks(count: int, function: Callable[..., Any], *args: Any, seconds: float = 600) -> list[Any]:
    """Calls ``function(rank, *args)`` in `count` processes; returns what each returned, in the order of the ranks.

    Args:
        count: how many processes.
        function: a top-level function of a module.
        args: what it gets besides the rank; they are pickled, as is what it returns.
        seconds: the time for all of it, against hanging; the build of a backend is in it.

    Raises:
        RankError: a rank raised, died, or took too long.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    work = pickle.dumps((function, args))
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    with TemporaryDirectory() as folder:
        try:
            for rank in range(count):
                ours, theirs = context.Pipe(duplex=False)
                arguments = (rank, count, f"file://{folder}/store", seconds, work, theirs)
                processes.append(context.Process(target=_be_rank, args=arguments, daemon=True))
                processes[-1].start()
                theirs.close()  # the rank's end alone keeps the pipe open
                pipes.append(ours)
            return _collect(processes, pipes, monotonic() + seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()
            for pipe in pipes:
                pipe.close()


def _collect(processes: Sequence[BaseProcess], pipes: Sequence[Connection], end: float) -> list[Any]:
    """Waits for every rank's report or death, but after the first failure not for long."""
    running: dict[Any, int] = {pipe: rank for rank, pipe in enumerate(pipes)}
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    while running and (ready := wait(list(running), max(0.0, end - monotonic()))):
        for pipe in ready:
            rank = running.pop(pipe)
            try:
                returned, report = pickle.loads(pipes[rank].recv_bytes())
            except (EOFError, OSError):
                returned, report = False, _death_of(processes[rank])
            (results if returned else failures)[rank] = report
        if failures:
            end = min(end, monotonic() + _GRACE_S)
    failures |= dict.fromkeys(running.values(), "was still running, and was stopped")
    if failures:
        raise RankError("\n".join(f"rank {rank} {failures[rank]}" for rank in sorted(failures)))
    return [results[rank] for rank in range(len(pipes))]


def _death_of(process: BaseProcess) -> str:
    process.join(60)
    code = process.exitcode
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code} before it returned"


def _be_rank(rank: int, count: int, store: str, seconds: float, work: bytes, pipe: Connection) -> None:
    faulthandler.dump_traceback_later(0.9 * seconds)  # tells on stderr where it hangs
    try:
        function, args = pickle.loads(work)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
        report = pickle.dumps((True, function(rank, *args)))
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, f"raised\n{traceback.format_exc()}")))
    else:
        pipe.send_bytes(report)
        with contextlib.suppress(Exception):
            dist.barrier()  # others may still talk to this one
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # gloo's own end aborts now and then
