"""The order in which a GPU is given its work when a step is timed, shown with a CPU behind torch.cuda's names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.gpu import clocks
from bench.gpu.clocks import CudaClock, clock_for

FLUSH_S = 0.001


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> CudaClock:
    """A `CudaClock` whose device does everything at once, and whose flush takes `FLUSH_S`."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")
            self.seconds = perf_counter()

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return (end.seconds - self.seconds) * 1e3

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        log.append(f"on {chosen.name}")
        yield
        log.append("back")

    @contextmanager
    def graph(made: Graph, stream: Stream) -> Iterator[None]:
        log.append(f"capture on {stream.name}")
        yield
        log.append("captured")

    def fill(self: Tensor) -> Tensor:
        log.append("flush")
        end = perf_counter() + FLUSH_S
        while perf_counter() < end:
            pass
        return self

    properties = SimpleNamespace(L2_cache_size=1000)
    fakes = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "stream": stream,
        "graph": graph,
        "current_device": lambda: 0,
        "get_device_properties": lambda index: properties,
        "current_stream": lambda: Stream("main"),
        "synchronize": lambda: log.append("synchronize"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(CudaClock, "device", "cpu")
    monkeypatch.setattr(Tensor, "zero_", fill)
    made = clock_for("cuda")
    assert isinstance(made, CudaClock)
    assert made._buffer.nbytes == 4000
    log.clear()
    return made


def test_the_cache_is_flushed_outside_of_the_timed_region(clock: CudaClock, log: list[str]) -> None:
    def step() -> None:
        log.append("step")
        end = perf_counter() + 0.02
        while perf_counter() < end:
            pass

    time = clock.device_ns(step)
    assert log == ["flush", "event", "step", "event", "wait"]
    assert 0.02e9 <= time < 0.2e9


def test_the_device_is_kept_busy_until_the_host_has_enqueued_the_step(clock: CudaClock, log: list[str]) -> None:
    clock.device_ns(lambda: log.append("step"), head_start_ns=int(20 * FLUSH_S * 1e9))
    assert 10 <= log.count("flush") <= 21, "the machine may have slowed down the flush that was measured"
    assert log[-4:] == ["event", "step", "event", "wait"]
    log.clear()
    clock.device_ns(lambda: None, head_start_ns=10**12)
    assert log.count("flush") == 501, "no more than a queue holds"


def test_the_hosts_time_begins_with_an_empty_queue_and_waits_for_nothing(clock: CudaClock, log: list[str]) -> None:
    clock.host_ns(lambda: log.append("step"))
    assert log == ["synchronize", "step"]


def test_a_graph_is_captured_after_warm_up_steps_on_its_stream(clock: CudaClock, log: list[str]) -> None:
    replay = clock.graph_of(lambda: log.append("step"))
    replay()
    assert log == [
        *("side waits for main", "on side", "step", "step", "step", "back", "main waits for side"),
        *("capture on side", "step", "captured", "replay"),
    ]


def test_launches_are_read_from_the_second_profile(
    clock: CudaClock, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = iter([[], ["kernel", "kernel", "gpu_memset"], [], []])

    class Profile:
        def __init__(self, activities: Any) -> None:
            self.categories = next(traces)

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *error: object) -> None:
            log.append("profiled")

        def export_chrome_trace(self, path: str) -> None:
            Path(path).write_text(json.dumps({"traceEvents": [{"cat": category} for category in self.categories]}))

    monkeypatch.setattr(clocks, "profile", Profile)
    assert clock.launches_of(lambda: log.append("step")) == {"kernels": 2, "copies": 0, "fills": 1}
    assert log == ["synchronize", *("step", "synchronize", "profiled") * 2]
    with pytest.raises(RuntimeError, match="saw no kernel in a step"):
        clock.launches_of(lambda: None)


def test_a_device_is_broken_if_it_cannot_even_be_waited_for(clock: CudaClock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not clock.is_broken()

    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert clock.is_broken()
