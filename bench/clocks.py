"""How a step is timed on a device, and what else only the device can tell: all in which CPU and GPU differ here."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]

STATUS = Path("/proc/self/status")
COPY_BYTES = {"cpu": 512 * 2**20, "cuda": 2**30}  # far larger than any cache
HOST_CALLS = 10
MAX_FLUSHES = 500  # a stream takes about a thousand kernels before a launch has to wait
LAUNCHES = {"kernel": "kernels", "gpu_memcpy": "copies", "gpu_memset": "fills"}


class Clock(Protocol):
    """Times steps on a device."""

    def timer(self, step: Step) -> tuple[Callable[[], int], float | None]:
        """Returns a call that takes a step and returns its time in nanoseconds.

        Where the host does not wait for the device, what a call takes on the host comes with it, in microseconds.
        """

    def peak_bytes(self) -> int:
        """Returns the most memory that this process has used."""


class CpuClock:
    """The time until the call returns. What a step finds in the caches is up to who had the turn before."""

    def timer(self, step: Step) -> tuple[Callable[[], int], None]:
        def take() -> int:
            start = perf_counter_ns()
            step()
            return perf_counter_ns() - start

        return take, None

    def peak_bytes(self) -> int:
        # getrusage would tell the peak of the parent process, if that is larger.
        if not STATUS.exists():
            raise RuntimeError("the peak resident set is only known on Linux")
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return 1024 * int(fields["VmHWM"].removesuffix("kB"))


class CudaClock:
    """CUDA events around a step, on the current CUDA device.

    Before each timed step a buffer four times as large as the L2 cache is filled, outside of the timed region. So the
    step finds nothing of its own in the cache, as after a backward pass, and the cache full of lines that have to be
    written back, as many as the step itself leaves behind: all its traffic is paid for. The filling also keeps the
    device busy until the host has enqueued the whole step; what the host takes is a figure of its own.
    """

    def __init__(self) -> None:
        size = 4 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._buffer = torch.empty(size, dtype=torch.uint8, device="cuda")
        self._begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = perf_counter() + 0.5  # a device that was idle needs a moment to raise its clocks
        while perf_counter() < end:
            self._time(self._buffer.zero_)
        self._flush_ns = min(self._time(self._buffer.zero_) for _ in range(5))

    def timer(self, step: Step) -> tuple[Callable[[], int], float]:
        host_ns = statistics.median(self._host_ns(step) for _ in range(HOST_CALLS))
        # Twice what the call takes: then the device meets no gap, unless the step itself waits for it.
        flushes = 1 + min(int(2 * host_ns / self._flush_ns), MAX_FLUSHES)

        def take() -> int:
            for _ in range(flushes):
                self._buffer.zero_()
            return self._time(step)

        return take, host_ns / 1e3

    def _host_ns(self, step: Step) -> int:
        torch.cuda.synchronize()
        start = perf_counter_ns()
        step()
        return perf_counter_ns() - start

    def _time(self, step: Step) -> int:
        self._begin.record()
        step()
        self._end.record()
        self._end.synchronize()
        milliseconds: float = self._begin.elapsed_time(self._end)
        return round(milliseconds * 1e6)

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()


@cache
def clock_for(device: str) -> Clock:
    """Returns the clock of `"cuda"` or `"cpu"`."""
    return CudaClock() if device == "cuda" else CpuClock()


@cache  # to touch a gigabyte for the first time takes longer than to copy it
def _copy_of(size: int, device: str) -> Step:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def copy_bandwidths(device: str, copies: int = 3) -> list[float]:
    """Returns GB/s of single `Tensor.copy_` calls on `COPY_BYTES`, read and written bytes counted."""
    take, _ = clock_for(device).timer(_copy_of(COPY_BYTES[device], device))
    return [2 * COPY_BYTES[device] / take() for _ in range(copies)]


def count_launches(step: Step) -> dict[str, int]:
    """Counts what a GPU is given to do in one step, by the values of `LAUNCHES`."""
    os.environ["TEARDOWN_CUPTI"] = "0"  # unloading the profiler may crash a process that has CUDA graphs
    torch.cuda.synchronize()
    for _ in range(2):  # the first time wakes the profiler up and may miss something
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            step()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(errors="replace"))["traceEvents"]
    seen = Counter(event.get("cat") for event in events)  # the user's annotations are of another category
    launches = {name: seen[category] for category, name in LAUNCHES.items()}
    if launches["kernels"] == 0:
        raise RuntimeError("torch.profiler saw no kernel in a step, want at least one")
    return launches
