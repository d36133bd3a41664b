"""Times of optimizer steps, which must not wait for a GPU while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class StepTimer:
    """Times steps: by the clock on a CPU, by events in the stream on a GPU, read when the epoch is over.

    Args:
        device: where the parameters are.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._milliseconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def run(self, step: Callable[[], object]) -> None:
        """Calls and times a step."""
        if not self._on_gpu:
            start = time.perf_counter()
            step()
            self._milliseconds.append((time.perf_counter() - start) * 1e3)
            return
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        step()
        after.record()
        self._events.append((before, after))

    def read(self) -> list[float]:
        """Milliseconds of the steps since the last call; waits for the GPU."""
        for before, after in self._events:
            after.synchronize()
            self._milliseconds.append(before.elapsed_time(after))
        taken, self._milliseconds, self._events = self._milliseconds, [], []
        return taken
