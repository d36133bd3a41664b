"""Measures units, in a process that a broken kernel may bring down: `python -m bench.gpu.worker DEVICE UNITS INTO`.

UNITS is a JSON file with the units; INTO receives a line of JSON for all that happens, as soon as it does, so that
`supervisor.py` knows what was under way when the process died.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

from bench.cases import Setup, setup
from bench.gpu.clocks import WARM_UP_STEPS, Clock, Step, clock_for
from bench.gpu.comparison import copy_step, figures_of, sample_in_turns
from bench.gpu.units import AGAINST, Unit

HOST_S, DEVICE_S, GRAPH_S = 0.15, 0.4, 0.3  # how long each is sampled
START_ANEW = 3  # exit status: what is left has to be measured by a fresh process

Figures = object  # whatever JSON can hold


class Baseline:
    """`AGAINST` on one network, kept while other contenders take turns with it."""

    def __init__(self, unit: Unit, clock: Clock) -> None:
        self._unit = unit
        self.step = setup(unit.case, AGAINST, unit.torch_dtype, device=clock.device).step
        self.copy = copy_step(clock)
        self._clock = clock
        self._graphs: tuple[Step, Step] | None = None

    def is_for(self, unit: Unit) -> bool:
        return (unit.case, unit.dtype) == (self._unit.case, self._unit.dtype)

    def graphs(self) -> tuple[Step, Step]:
        """Graphs of the step and of the copy, made at the first call."""
        if self._graphs is None:
            self._graphs = self._clock.graph_of(self.step), self._clock.graph_of(self.copy)
        return self._graphs


class CaptureError(RuntimeError):
    """A step could not be captured. What torch leaves behind then disturbs all that follows in the process."""


def times_of(unit: Unit, made: Setup, baseline: Baseline, clock: Clock) -> Iterator[tuple[str, Figures]]:
    """Yield figures under their names: `host`, then `events`."""
    ours, against, copy = made.step, baseline.step, baseline.copy
    host = sample_in_turns(
        {"ours": lambda: clock.host_ns(ours), "against": lambda: clock.host_ns(against)},
        HOST_S,
    )
    yield "host", figures_of(host)
    # Twice what the call takes: then the device meets no gap, unless the step itself waits for it.
    ahead = {name: 2 * round(statistics.median(times)) for name, times in host.items()}
    events = sample_in_turns(
        {
            "ours": lambda: clock.device_ns(ours, ahead["ours"]),
            "against": lambda: clock.device_ns(against, ahead["against"]),
            "copy": lambda: clock.device_ns(copy, ahead["against"]),
        },
        DEVICE_S,
    )
    made.check_values()
    yield "events", figures_of(events, unit.step_bytes, clock.copy_bytes)


def graph_times_of(unit: Unit, made: Setup, baseline: Baseline, clock: Clock) -> Figures:
    """Figures of replayed graphs."""
    try:
        graph, (against, copy) = clock.graph_of(made.step), baseline.graphs()
    except RuntimeError as error:
        raise CaptureError(str(error)) from error
    times = sample_in_turns(
        {
            "ours": lambda: clock.device_ns(graph),
            "against": lambda: clock.device_ns(against),
            "copy": lambda: clock.device_ns(copy),
        },
        GRAPH_S,
    )
    made.check_values()
    return figures_of(times, unit.step_bytes, clock.copy_bytes)


def figures_of_unit(unit: Unit, baseline: Baseline | None, clock: Clock) -> Iterator[tuple[str, Figures]]:
    """Yield a unit's figures as soon as they are there."""
    start = perf_counter()
    made = setup(unit.case, unit.contender, unit.torch_dtype, device=clock.device)
    yield "setup_s", perf_counter() - start
    for _ in range(WARM_UP_STEPS):
        made.step()
    if "times" in unit.parts:
        assert baseline is not None
        yield from times_of(unit, made, baseline, clock)
    if "graph" in unit.parts:
        assert baseline is not None
        yield "graph", graph_times_of(unit, made, baseline, clock)
    if "launches" in unit.parts:
        yield "launches", clock.launches_of(made.step)


def measure(units: Sequence[Unit], clock: Clock, report: Callable[[dict[str, object]], None]) -> int:
    """Measure units and report begin, figures or error, and end of each in turn; returns the exit status."""
    baseline: Baseline | None = None
    for unit in units:
        report({"begun": True})
        if baseline is not None and not baseline.is_for(unit):
            baseline = None
        gc.collect()
        try:
            if baseline is None:
                check_memory(unit, clock)
                baseline = Baseline(unit, clock) if "times" in unit.parts else None
            for name, figures in figures_of_unit(unit, baseline, clock):
                report({"figures": {name: figures}})
        except CaptureError as error:
            report({"figures": {"graph_error": str(error)}, "done": True})
            return START_ANEW
        except Exception as error:
            report({"figures": {"error": f"{type(error).__name__}: {error}"}})
            traceback.print_exc()
            if clock.is_broken():
                return START_ANEW
        report({"done": True})
    return 0


def check_memory(unit: Unit, clock: Clock) -> None:
    """Raise MemoryError if the device's memory is too small."""
    free, wanted = clock.free_bytes(), unit.memory_needed(clock.copy_bytes)
    if free < wanted:
        raise MemoryError(f"{wanted / 1e9:.0f} GB of device memory are wanted, {free / 1e9:.0f} GB are free")


def main() -> None:
    """Read the units, measure, and leave at once: a broken device may make an orderly end wait for ever."""
    device, units, into = sys.argv[1:]
    with Path(into).open("a") as lines:

        def report(line: dict[str, object]) -> None:
            print(json.dumps(line), file=lines, flush=True)

        wanted = [Unit.from_json(unit) for unit in json.loads(Path(units).read_text())]
        status = measure(wanted, clock_for(device), report)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
