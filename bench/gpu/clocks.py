"""How a step is timed on a device; on a CPU in the same way, so that the benchmark can be tried without a GPU."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]

WARM_UP_STEPS = 3
MAX_FLUSHES = 500  # a stream takes about a thousand kernels before a launch has to wait
LAUNCHES = {"kernel": "kernels", "gpu_memcpy": "copies", "gpu_memset": "fills"}


class Clock(Protocol):
    """Times single steps on a device."""

    device: str
    copy_bytes: int  # of the copy that bandwidths are compared with: far larger than any cache

    def device_ns(self, step: Step, head_start_ns: int = 0) -> int:
        """Time from the step's first instruction on the device to its last, none of it in a cache before.

        Args:
            step: what is timed.
            head_start_ns: for so long at least the device is kept busy before, while the host enqueues the step.
        """

    def host_ns(self, step: Step) -> int:
        """Time until the call returns, with nothing in the device's queue before."""

    def graph_of(self, step: Step) -> Step:
        """A CUDA graph of the step, as a call that replays it."""

    def launches_of(self, step: Step) -> dict[str, int]:
        """What the device is given to do in one step, by the values of `LAUNCHES`."""

    def free_bytes(self) -> int:
        """Memory that is free."""

    def is_broken(self) -> bool:
        """Whether every further use of the device would fail, as after an illegal access."""


class CpuClock:
    """Stands in for a GPU. Its figures are those of a CPU, with warm caches."""

    device = "cpu"
    copy_bytes = 2**20

    def device_ns(self, step: Step, head_start_ns: int = 0) -> int:
        return self.host_ns(step)

    def host_ns(self, step: Step) -> int:
        start = perf_counter_ns()
        step()
        return perf_counter_ns() - start

    def graph_of(self, step: Step) -> Step:
        raise RuntimeError("a CPU has no graphs")

    def launches_of(self, step: Step) -> dict[str, int]:
        return dict.fromkeys(LAUNCHES.values(), 0)

    def free_bytes(self) -> int:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def is_broken(self) -> bool:
        return False


class CudaClock:
    """CUDA events around a step, on the current CUDA device.

    Before each timed step a buffer four times as large as the L2 cache is filled, outside of the timed region. So the
    step finds nothing of its own in the cache, as after a backward pass, and the cache full of lines that have to be
    written back, as many as the step itself leaves behind: all its traffic is paid for. The filling also keeps the
    device busy until the host has enqueued the whole step; what the host takes is a figure of its own.
    """

    device = "cuda"
    copy_bytes = 2**30

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self._buffer = torch.empty(4 * properties.L2_cache_size, dtype=torch.uint8, device=self.device)
        self._begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = perf_counter() + 0.5  # a device that was idle needs a moment to raise its clocks
        while perf_counter() < end:
            self._time(self._buffer.zero_)
        self._flush_ns = min(self._time(self._buffer.zero_) for _ in range(5))

    def device_ns(self, step: Step, head_start_ns: int = 0) -> int:
        for _ in range(1 + min(head_start_ns // self._flush_ns, MAX_FLUSHES)):
            self._buffer.zero_()
        return self._time(step)

    def _time(self, step: Step) -> int:
        self._begin.record()
        step()
        self._end.record()
        self._end.synchronize()
        milliseconds: float = self._begin.elapsed_time(self._end)
        return round(milliseconds * 1e6)

    def host_ns(self, step: Step) -> int:
        torch.cuda.synchronize()
        start = perf_counter_ns()
        step()
        return perf_counter_ns() - start

    def graph_of(self, step: Step) -> Step:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        return graph.replay

    def launches_of(self, step: Step) -> dict[str, int]:
        torch.cuda.synchronize()
        for _ in range(2):  # the first time wakes the profiler up and may miss something
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                step()
                torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(trace))
            launches = count_launches(json.loads(trace.read_text(errors="replace")))
        if launches["kernels"] == 0:
            raise RuntimeError("torch.profiler saw no kernel in a step, want at least one")
        return launches

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def is_broken(self) -> bool:
        try:
            torch.cuda.synchronize()
            torch.ones(1, device=self.device).item()
        except RuntimeError:
            return True
        return False


def clock_for(device: str) -> Clock:
    """The clock for `"cuda"` or `"cpu"`."""
    return CudaClock() if device == "cuda" else CpuClock()


def count_launches(trace: Mapping[str, Any]) -> dict[str, int]:
    """Count kernels, copies and fills in a trace of torch.profiler; user annotations there are none of them."""
    seen = Counter(event.get("cat") for event in trace["traceEvents"])
    return {name: seen[category] for category, name in LAUNCHES.items()}
