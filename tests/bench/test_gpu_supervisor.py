"""The benchmark on a GPU goes on without whatever brings down its process, and says what it left out."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from bench.gpu.supervisor import NO_TIME, Supervisor
from bench.gpu.units import Unit
from tests.processes import has_ended

# A worker without torch: each contender's name says what becomes of it.
WORKER = """
import json, os, subprocess, sys, time
units, into = sys.argv[1:]
lines = open(into, "a")
def report(**line):
    print(json.dumps(line), file=lines, flush=True)
for unit in json.load(open(units)):
    report(begun=True)
    name = unit["contender"]
    if name == "dies":
        print("an illegal address")
        os._exit(7)
    if name == "hangs":
        child = subprocess.Popen(["sleep", "60"])
        report(figures={"child": child.pid})
        time.sleep(60)
    if name == "breaks the device":
        report(figures={"error": "CUDA error: an illegal address"})
        os._exit(3)
    if name == "has no graph" and "graph" in unit["parts"]:
        report(figures={"graph_error": "it waits"}, done=True)
        os._exit(3)
    if name == "raises":
        report(figures={"error": "RuntimeError: no"})
    else:
        report(figures={"parts": unit["parts"], "process": os.getpid()})
    report(done=True)
"""


def unit(contender: str, case: str = "VGG16", parts: tuple[str, ...] = ("times",)) -> Unit:
    return Unit(case, "float32", contender, parts)


def supervise(
    units: list[Unit], worker: str = WORKER, seconds: float = 60
) -> tuple[dict[tuple[str, str], dict[str, Any]], Supervisor]:
    """Figures by contender and network, and the supervisor for more units."""
    recorded: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)

    def record(unit: Unit, figures: Mapping[str, object]) -> None:
        recorded[unit.contender, unit.case].update(figures)

    supervisor = Supervisor([sys.executable, "-S", "-c", worker], record, monotonic() + seconds)
    supervisor.run(units)
    return recorded, supervisor


def test_one_process_measures_what_does_not_fail() -> None:
    recorded, _ = supervise([unit("one"), unit("raises"), unit("two"), unit("raises", "ResNet-50")])
    assert recorded["one", "VGG16"]["parts"] == ["times"]
    assert recorded["one", "VGG16"]["process"] == recorded["two", "VGG16"]["process"]
    for case in ("VGG16", "ResNet-50"):
        assert recorded["raises", case] == {"error": "RuntimeError: no"}, "an exception alone does not leave it out"


def test_a_contender_that_ends_the_process_is_left_out_from_then_on() -> None:
    recorded, supervisor = supervise([unit("one"), unit("dies"), unit("two"), unit("dies", "ResNet-50")])
    assert recorded["dies", "VGG16"] == {"error": "the process ended with status 7\nan illegal address"}
    assert recorded["dies", "ResNet-50"] == {"error": "left out, because it ended the run of dies on VGG16 in float32"}
    assert recorded["two", "VGG16"]["process"] != recorded["one", "VGG16"]["process"]
    supervisor.run([unit("dies", "ResNet-152")])
    assert recorded["dies", "ResNet-152"] == recorded["dies", "ResNet-50"], "in later batches too"


def test_the_words_of_a_worker_whose_device_broke_are_kept() -> None:
    recorded, _ = supervise([unit("breaks the device"), unit("one"), unit("breaks the device", "ResNet-50")])
    assert recorded["breaks the device", "VGG16"] == {"error": "CUDA error: an illegal address"}
    assert recorded["breaks the device", "ResNet-50"]["error"].startswith("left out")
    assert "error" not in recorded["one", "VGG16"]


def test_a_contender_that_hangs_is_ended_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unit, "limit_s", lambda self: 1.0)
    recorded, _ = supervise([unit("hangs"), unit("one")])
    assert recorded["hangs", "VGG16"]["error"] == "stopped after 1.0 s without a word\n"
    assert "error" not in recorded["one", "VGG16"]
    assert has_ended(recorded["hangs", "VGG16"]["child"])


def test_a_step_without_a_graph_loses_its_later_graphs_and_nothing_else() -> None:
    both = ("times", "graph")
    recorded, _ = supervise(
        [unit("has no graph", parts=both), unit("one", parts=both), unit("has no graph", "A", both)]
    )
    assert recorded["has no graph", "VGG16"] == {"graph_error": "it waits"}
    assert recorded["one", "VGG16"]["parts"] == ["times", "graph"]
    assert recorded["has no graph", "A"]["parts"] == ["times"]
    assert (
        recorded["has no graph", "A"]["graph_error"] == "left out after it failed on has no graph on VGG16 in float32"
    )


def test_what_no_time_was_left_for_is_said() -> None:
    start = monotonic()
    recorded, supervisor = supervise([unit("one"), unit("hangs"), unit("two")], seconds=1.5)
    supervisor.run([unit("one", "ResNet-50")])
    assert monotonic() - start < 20
    assert "error" not in recorded["one", "VGG16"]
    for place in (("hangs", "VGG16"), ("two", "VGG16"), ("one", "ResNet-50")):
        assert recorded[place]["error"] == NO_TIME


def test_a_worker_that_cannot_begin_is_not_started_again_and_again() -> None:
    recorded, _ = supervise([unit("one"), unit("two")], worker="import sys; sys.exit('no torch here')")
    for contender in ("one", "two"):
        assert recorded[contender, "VGG16"] == {"error": "the process ended with status 1\nno torch here"}


def test_the_worker_runs_in_the_repository_with_the_profiler_kept_loaded() -> None:
    worker = "import os, sys; sys.exit(os.getcwd() + ' ' + os.environ['TEARDOWN_CUPTI'])"
    recorded, _ = supervise([unit("one")], worker=worker)
    assert recorded["one", "VGG16"]["error"].endswith(f"{Path(__file__).resolve().parents[2]} 0")
    assert os.environ.get("TEARDOWN_CUPTI") is None
