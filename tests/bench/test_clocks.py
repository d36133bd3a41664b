"""The order in which a GPU is given its work when a step is timed, shown with a CPU behind torch.cuda's names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import clocks
from bench.clocks import CudaClock, count_launches

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

    def fill(self: Tensor) -> Tensor:
        log.append("flush")
        end = perf_counter() + FLUSH_S
        while perf_counter() < end:
            pass
        return self

    properties = SimpleNamespace(L2_cache_size=1000)
    fakes = {
        "Event": Event,
        "current_device": lambda: 0,
        "get_device_properties": lambda index: properties,
        "synchronize": lambda: log.append("synchronize"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(size, dtype=dtype))
    monkeypatch.setattr(Tensor, "zero_", fill)
    made = CudaClock()
    assert made._buffer.nbytes == 4000
    log.clear()
    return made


def test_the_cache_is_flushed_outside_of_the_timed_region(clock: CudaClock, log: list[str]) -> None:
    def step() -> None:
        log.append("step")
        end = perf_counter() + 0.02
        while perf_counter() < end:
            pass

    take, host_us = clock.timer(step)
    assert host_us >= 0.02e6
    log.clear()
    assert take() >= 0.02e9
    assert log[-5:] == ["flush", "event", "step", "event", "wait"]


def test_the_device_is_kept_busy_until_the_host_has_enqueued_the_step(clock: CudaClock, log: list[str]) -> None:
    def flushes(host_ns: float) -> int:
        clock._host_ns = lambda step: int(host_ns)  # type: ignore[method-assign]
        take, _ = clock.timer(lambda: None)
        log.clear()
        take()
        return log.count("flush")

    assert flushes(0) == 1
    assert flushes(10 * clock._flush_ns) == 21, "twice what the call takes"
    assert flushes(1e12) == 501, "no more than a queue holds"


def test_the_hosts_time_begins_with_an_empty_queue_and_waits_for_nothing(clock: CudaClock, log: list[str]) -> None:
    clock.timer(lambda: log.append("step"))
    assert log == ["synchronize", "step"] * clocks.HOST_CALLS


def test_launches_are_read_from_the_second_profile(
    clock: CudaClock, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEARDOWN_CUPTI", "1")  # as it was, afterwards
    traces = iter([[], ["kernel", "cpu_op", "gpu_user_annotation", "kernel", "gpu_memset"], [], []])

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
    assert count_launches(lambda: log.append("step")) == {"kernels": 2, "copies": 0, "fills": 1}
    assert log == ["synchronize", *("step", "synchronize", "profiled") * 2]
    assert os.environ["TEARDOWN_CUPTI"] == "0", "the profiler stays loaded"
    with pytest.raises(RuntimeError, match="saw no kernel in a step"):
        count_launches(lambda: None)
