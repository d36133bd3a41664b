"""A process that calls functions for this one: a broken kernel may bring it down or hang it, and the rest goes on."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

Value = TypeVar("Value")


class CallFailed(Exception):
    """The call raised an exception; the message is its type and words."""


class ProcessLost(Exception):
    """The process died or was ended because it took too long; the message says which."""


class Child:
    """Calls functions one after the other in one process, and in a fresh one after a call that failed.

    An exception ends the process too: a device that has failed, or a capture that has, disturbs what comes after it.
    """

    def __init__(self) -> None:
        self._pipe: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Kills the process: where a device is broken, an orderly end may wait for ever."""
        if self._process is not None and self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None

    def call(self, limit_s: float, function: Callable[..., Value], *arguments: object) -> Value:
        """Returns what a function of a module returns; arguments and result have to be picklable.

        Raises:
            CallFailed: the function raised an exception.
            ProcessLost: the process died, or nothing came within `limit_s`.
        """
        pipe = self._started()
        try:
            pipe.send((function, arguments))
            if not pipe.poll(limit_s):
                raise ProcessLost(f"stopped after {limit_s:g} s")
            value: Value
            error, value = pipe.recv()
        except (EOFError, ConnectionError):
            assert self._process is not None
            self._process.join()
            code = self._process.exitcode
            self.end()
            raise ProcessLost(f"the process ended with status {code}") from None
        except BaseException:  # an interrupt of the user's as well
            self.end()
            raise
        if error is not None:
            self.end()
            raise CallFailed(error)
        return value

    def _started(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()  # or the end of the process would not be the end of the pipe
        return self._pipe


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that started this one, and that ends it
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((None, function(*arguments)))
        except Exception as error:
            pipe.send((f"{type(error).__name__}: {error}", None))
