"""What is measured on a GPU, tried on the CPU: turns, figures, graphs, launches, and what happens after a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bench.cases import CASES, setup
from bench.contenders import GPU_CONTENDERS
from bench.gpu import units, worker
from bench.gpu.clocks import CpuClock, Step, count_launches
from bench.gpu.comparison import figures_of, sample_in_turns
from bench.gpu.units import Unit, batches
from bench.gpu.worker import START_ANEW, measure

TINY = "tiny"


class Clock(CpuClock):
    """A CPU with graphs and a profiler, which notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.free = 10**12
        self.broken = False

    def graph_of(self, step: Step) -> Step:
        self.asked.append("graph")
        return step

    def launches_of(self, step: Step) -> dict[str, int]:
        self.asked.append("launches")
        return {"kernels": 2, "copies": 0, "fills": 1}

    def free_bytes(self) -> int:
        return self.free

    def is_broken(self) -> bool:
        return self.broken


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of two tensors, timed for no longer than the least number of rounds takes."""
    monkeypatch.setitem(CASES, TINY, [(4, 3), (4,)])
    for name in ("HOST_S", "DEVICE_S", "GRAPH_S"):
        monkeypatch.setattr(worker, name, 0)


def unit(contender: str, *parts: str, case: str = TINY) -> Unit:
    return Unit(case, "float32", contender, parts or ("times", "graph"))


def measured(wanted: list[Unit], clock: Clock) -> tuple[int, list[dict[str, Any]]]:
    """The exit status, and for each unit all that was reported of it."""
    reports: list[dict[str, Any]] = []

    def report(line: dict[str, Any]) -> None:
        if "begun" in line:
            reports.append({})
        reports[-1].update(line.get("figures", {}))
        if "done" in line:
            reports[-1]["done"] = True

    return measure(wanted, clock, report), reports


def test_each_part_gives_its_figures_the_profilers_last() -> None:
    clock = Clock()
    status, (one,) = measured([unit("torch foreach", "times", "graph", "launches")], clock)
    assert status == 0
    assert list(one) == ["setup_s", "host", "events", "graph", "launches", "done"]
    assert one["launches"] == {"kernels": 2, "copies": 0, "fills": 1}
    assert clock.asked == ["graph", "graph", "graph", "launches"], "of the step, of torch's fused step, of the copy"
    for way in ("events", "graph"):
        assert one[way]["rounds"] == 5
        assert one[way]["gb_per_s"]["median"] == pytest.approx(20 * 16 / 1e3 / one[way]["us"]["median"])


def test_torchs_fused_step_stays_while_others_take_turns_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []

    def noted_setup(case: str, contender: str, *rest: Any, **options: Any) -> Any:
        made.append((case, contender))
        return setup(case, contender, *rest, **options)

    monkeypatch.setattr(worker, "setup", noted_setup)
    wanted = [unit("torch foreach"), unit("torch for-loop"), unit("torch for-loop", case="160x64")]
    clock = Clock()
    assert measured(wanted, clock)[0] == 0
    against = [(case, "torch fused") for case in (TINY, "160x64")]
    assert [place for place in made if place in against] == against, "made once for each network"
    assert clock.asked == ["graph"] * (3 + 1 + 3), "its graph and the copy's once for each network as well"


def test_one_contender_that_fails_does_not_keep_the_next_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(parameters: list[torch.Tensor]) -> Any:
        raise ValueError("backend: not built")

    monkeypatch.setitem(GPU_CONTENDERS, "native", fails)
    status, (failed, other) = measured([unit("native"), unit("torch foreach")], Clock())
    assert status == 0
    assert failed == {"error": "ValueError: backend: not built", "done": True}
    assert "graph" in other


def test_a_broken_device_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(parameters: list[torch.Tensor]) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setitem(GPU_CONTENDERS, "native", fails)
    clock = Clock()
    clock.broken = True
    status, reports = measured([unit("native"), unit("torch foreach")], clock)
    assert status == START_ANEW
    assert reports == [{"error": "RuntimeError: CUDA error: an illegal memory access"}], "not done: it is to blame"


def test_a_failed_capture_ends_the_process_and_leaves_the_other_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Clock, step: Step) -> Step:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Clock, "graph_of", fails)
    status, (one,) = measured([unit("torch foreach"), unit("torch for-loop")], Clock())
    assert status == START_ANEW
    assert one["graph_error"] == "operation not permitted when stream is capturing"
    assert one["done"] and "events" in one and "error" not in one


def test_a_device_that_is_too_small_is_told_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = unit("torch foreach", case="Pythia-1B").memory_needed(copy_bytes=10**9)
    assert largest == 9 * 4 * 1_011_781_632 + 2 * 10**9
    monkeypatch.setattr(Unit, "memory_needed", lambda self, copy_bytes: largest)
    clock = Clock()
    clock.free = 10**9
    status, (one,) = measured([unit("torch foreach")], clock)
    assert status == 0
    assert one == {"error": "MemoryError: 38 GB of device memory are wanted, 1 GB are free", "done": True}


def test_a_step_with_impossible_values_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = GPU_CONTENDERS["torch foreach"]

    def spoilt(parameters: list[torch.Tensor]) -> Any:
        optimizer, step = fused(parameters)
        parameters[1].data[2] = float("nan")
        return optimizer, step

    monkeypatch.setitem(GPU_CONTENDERS, "torch foreach", spoilt)
    _, (one,) = measured([unit("torch foreach")], Clock())
    assert "weight of parameter 1 has denormal or non-finite values" in one["error"]
    assert "events" not in one


def test_figures_are_paired_by_rounds() -> None:
    # Everything becomes ten times slower half way; no ratio notices.
    times = {"ours": [100, 100, 1000, 1000], "against": [200, 200, 2000, 2000], "copy": [50, 50, 500, 500]}
    figures: Any = figures_of(times, step_bytes=400, copy_bytes=200)
    assert figures["ratio"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert figures["share_of_copy"] == {"median": 0.5, "low": 0.5, "high": 0.5}, "4 B/ns where the copy has 8"
    assert figures["us"]["low"] == pytest.approx(0.1)
    assert figures["copy_gb_per_s"]["high"] == pytest.approx(8)
    assert figures["rounds"] == 4


def test_samples_are_taken_in_turns_after_warm_up_rounds() -> None:
    taken: list[str] = []

    def sample(name: str) -> Callable[[], int]:
        def take() -> int:
            taken.append(name)
            return len(taken)

        return take

    times = sample_in_turns({name: sample(name) for name in "ABC"}, seconds=0)
    assert {name: len(samples) for name, samples in times.items()} == dict.fromkeys("ABC", 5)
    assert len(taken) == 3 * (3 + 5)
    assert min(min(samples) for samples in times.values()) > 9, "the first three rounds are not among them"


def test_every_unit_can_be_made_and_its_launches_come_after_all_times() -> None:
    first, *compiled = batches()
    for wanted in [*first, *(unit for batch in compiled for unit in batch)]:
        assert wanted.contender in GPU_CONTENDERS
        assert wanted.step_bytes > 0 and wanted.torch_dtype.itemsize == (4 if wanted.dtype == "float32" else 2)
        assert Unit.from_json(json.loads(json.dumps(vars(wanted)))) == wanted
    with_launches = ["launches" in wanted.parts for wanted in first]
    assert with_launches == sorted(with_launches), "a profiler slows down what is timed after it"
    assert {wanted.contender for batch in compiled for wanted in batch} == {units.COMPILED}
    assert all(len(batch) == 1 for batch in compiled), "each with a profiler of its own"
    timed = {(unit.case, unit.contender) for unit in first if "times" in unit.parts and unit.dtype == "float32"}
    assert {(case, contender) for case in units.NETWORKS for contender in units.CONTENDERS} <= timed
    assert set(units.FEWEST_TENSORS_FIRST) == set(units.NETWORKS)
    with_graph = {unit.contender for unit in first if "graph" in unit.parts}
    assert with_graph == set(units.CONTENDERS) - units.WAITS


def test_only_what_the_device_is_given_counts_as_launches() -> None:
    categories = ["cpu_op", "kernel", "gpu_user_annotation", "cuda_runtime", "kernel", "gpu_memcpy", None]
    trace = {"traceEvents": [{"cat": category} if category else {"ph": "M"} for category in categories]}
    assert count_launches(trace) == {"kernels": 2, "copies": 1, "fills": 0}


@pytest.mark.filterwarnings("ignore")  # of torch's compiler about what it uses itself
def test_the_compiled_step_is_compiled_once_and_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        compilations.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    made, plain = setup(TINY, "torch compiled"), setup(TINY, "torch for-loop")
    first = len(compilations)
    assert first > 0, "by the step that no figure is taken of"
    for _ in range(3):
        made.step()
    assert len(compilations) == first
    for _ in range(4):
        plain.step()
    for mine, theirs in zip(made.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(mine, theirs)
