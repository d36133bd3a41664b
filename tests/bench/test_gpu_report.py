"""A run on a GPU ends in one report: from made-up measurements, and from a dry run on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import report
from bench.gpu.__main__ import CHECKS, SECONDS, Results, limit_of, main
from bench.gpu.supervisor import NO_TIME, Supervisor
from bench.gpu.units import CONTENDERS, Unit

WHERE = {"device": "Made-up GPU", "torch": "2.11", "nvcc": None, "commit": "abc", "dirty": False, "date": "today"}


def spread(median: float, width: float = 0.01) -> dict[str, float]:
    return {"median": median, "low": median - width, "high": median + width}


def measurement(case: str, contender: str, ratio: float, share: float, dtype: str = "float32") -> dict[str, Any]:
    way = {"us": spread(130.5, 1.5), "ratio": spread(ratio), "share_of_copy": spread(share)}
    return {
        "case": case,
        "dtype": dtype,
        "contender": contender,
        "events": way,
        "graph": way,
        "host": {"us": spread(1500, 250)},
        "launches": {"kernels": 1, "copies": 0, "fills": 0},
    }


def rows(text: str, start: str) -> list[list[str]]:
    """Cells of the rows that begin so."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {start}")]


def test_aims_are_met_missed_or_not_measured() -> None:
    at_the_edge = measurement("VGG16", "native", ratio=0.95, share=0.92)
    missed = measurement("Pythia-1B", "native", ratio=0.951, share=0.9199)
    del missed["graph"]
    text = report.aims([at_the_edge, missed, measurement("VGG16", "torch fused", 1, 1)])
    assert [row[-1] for row in rows(text, "VGG16")] == ["met"] * 4
    assert [row[-1] for row in rows(text, "Pythia-1B")] == ["MISSED", "not measured", "MISSED", "not measured"]
    assert [row[-1] for row in rows(text, "ResNet-152")] == ["not measured"] * 2, "no aim for its bandwidth"
    assert rows(text, "VGG16")[0][2] == "0.950 [0.940, 0.960]"


def test_contenders_stand_in_one_order_under_each_network() -> None:
    wanted = [measurement("ResNet-50", contender, 1, 0.9) for contender in reversed(CONTENDERS)]
    text = report.steps([measurement("VGG16", "native", 1, 0.9, "bfloat16"), *wanted])
    assert [row[1] for row in rows(text, "ResNet-50")] == list(CONTENDERS)
    assert rows(text, "VGG16") == [
        [
            *("VGG16, bfloat16", "native", "130.5 µs [129.0, 132.0]", "1.000 [0.990, 1.010]"),
            *("130.5 µs [129.0, 132.0]", "1.000 [0.990, 1.010]", "90 %, 90 %", "1.50 ms [1.25, 1.75]", "1"),
        ]
    ]


def test_what_is_missing_is_said_once_for_each_reason() -> None:
    lost = "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` | more"
    measurements = [
        {"case": "VGG16", "dtype": "float32", "contender": "foreach", "error": lost},
        {"case": "VGG13-CIFAR", "dtype": "float32", "contender": "foreach", "error": lost},
        {**measurement("VGG16", "native", 0.9, 0.9), "graph_error": "no", "launches_error": "no"},
    ]
    assert list(report.errors(measurements)) == [
        "- foreach on VGG16 in float32; foreach on VGG13-CIFAR in float32: "
        "CUDA error: out of memory: Compile with `TORCH_USE_CUDA_DSA` \\| more",
        "- native on VGG16 in float32, graph; native on VGG16 in float32, launches: no",
    ]
    assert "foreach" not in report.steps(measurements)


def test_launches_show_copies_and_fills_where_there_are_any() -> None:
    assert report.launches({"kernels": 4, "copies": 0, "fills": 0}) == "4"
    assert report.launches({"kernels": 4, "copies": 2, "fills": 1}) == "4 + 2 copies + 1 fills"


def test_failures_of_the_checks_stand_out() -> None:
    parts = {
        "build": {"ok": True, "seconds": 30},
        "tests": {
            "ok": False,
            "seconds": 99.6,
            "passed": 800,
            "failed": 25,
            "errors": 0,
            "skipped": 7,
            "error": "exit 1",
            "failures": [{"name": f"tests.test_a::test_{i}", "message": "assert 1 == 2"} for i in range(25)],
        },
        "sanitizer": {
            "ok": None,
            "seconds": 9,
            "tools": {"memcheck": {"ok": True, "errors": 0, "seconds": 5}},
        },
    }
    text = report.markdown({"where": WHERE, "parts": parts})
    assert text.startswith("# Made-up GPU\n\ntorch: 2.11; commit: abc; dirty: False; date: today\n")
    assert "| tests | FAILED | 800 passed, 25 failed, 0 errors, 7 skipped | 100 s |" in text
    assert "| sanitizer | not possible here |  | 9 s |\n| memcheck | passed | 0 errors | 5 s |" in text
    assert "- `tests.test_a::test_19`: assert 1 == 2\n\n... and 5 more." in text
    assert "## Steps" not in text
    with_figures = {**parts, "bench": {"measurements": [measurement("VGG16", "native", 0.9, 0.9)]}}
    text = report.markdown({"where": WHERE, "parts": with_figures})
    assert "## Aims" in text and "## Steps" in text and report.NO_GPU not in text


def test_a_part_leaves_time_for_those_after_it() -> None:
    everything = ("build", "tests", "sanitizer", "bench")
    assert limit_of("build", everything, SECONDS) == SECONDS - 360
    assert limit_of("tests", everything, 400) == 190
    assert limit_of("tests", ("build", "tests"), 400) == 400
    assert limit_of("bench", everything, 170) == 170
    assert limit_of("tests", everything, 100) == 0
    assert SECONDS + 10 < 8 * 60, "with what it takes to end a program that does not heed"


DIRTY = {"dirty": True}
UNKNOWN = {"commit": None, "dirty": None}


@pytest.mark.parametrize(
    ("before", "now", "is_kept"),
    [
        ({}, {}, True),
        ({}, {"commit": "def"}, False),
        ({}, {"torch": "2.12"}, False),
        (DIRTY, DIRTY, False),
        (UNKNOWN, UNKNOWN, False),
    ],
)
def test_parts_of_an_earlier_run_are_kept_for_the_same_sources_and_machine(
    before: dict[str, object], now: dict[str, object], is_kept: bool, tmp_path: Path
) -> None:
    Results(tmp_path, {**WHERE, **before}).put("tests", {"ok": True, "seconds": 1})
    Results(tmp_path, {**WHERE, "date": "tomorrow", **now}).put("build", {"ok": True, "seconds": 1})
    kept = json.loads((tmp_path / "made-up-gpu.json").read_text())
    assert ("tests" in kept["parts"]) == is_kept
    assert kept["where"]["date"] == "tomorrow"


def outcome(ok: bool | None) -> Callable[[str, float], dict[str, object]]:
    return lambda device, limit: {"ok": ok}


@pytest.mark.parametrize(
    ("verdicts", "status", "done"),
    [
        ((True, True, True), 0, ["build", "tests", "sanitizer", "bench"]),
        ((True, True, None), 0, ["build", "tests", "sanitizer", "bench"]),
        ((True, False, True), 1, ["build", "tests", "sanitizer", "bench"]),
        ((True, True, False), 1, ["build", "tests", "sanitizer", "bench"]),
        ((False, True, True), 1, ["build"]),
    ],
)
def test_checks_give_the_exit_status_and_a_failed_build_ends_the_run(
    verdicts: tuple[bool | None, ...], status: int, done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, ok in zip(CHECKS, verdicts, strict=True):
        monkeypatch.setitem(CHECKS, name, outcome(ok))
    monkeypatch.setattr(gpu, "describe", lambda device, commit: WHERE)
    monkeypatch.setattr(gpu, "batches", lambda: [[]])
    monkeypatch.setattr(gpu, "bench", lambda device, limit, wanted, results: results.put("bench", {"measurements": []}))
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == status
    assert list(json.loads((tmp_path / "made-up-gpu.json").read_text())["parts"]) == done


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "finds no CUDA device here" in capsys.readouterr().err


class WithoutLaunches(Supervisor):
    """Has no time for units that count launches."""

    def run(self, units: Sequence[Unit]) -> None:
        super().run([unit for unit in units if unit.parts != ("launches",)])
        for unit in units:
            if unit.parts == ("launches",):
                self._record(unit, {"error": NO_TIME})


def test_a_dry_run_on_the_cpu_measures_and_writes_as_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [
        Unit("160x64", "float32", "torch foreach", ("times", "graph", "launches")),
        Unit("160x64", "float32", "torch fused", ("times",)),
        Unit("160x64", "float32", "no such optimizer", ("times",)),
        Unit("160x64", "float32", "torch fused", ("launches",)),
    ]
    monkeypatch.setattr(gpu, "Supervisor", WithoutLaunches)
    monkeypatch.setattr(gpu, "batches", lambda: [wanted[:1], wanted[1:]])
    monkeypatch.setitem(CHECKS, "build", outcome(True))
    assert main(["--device", "cpu", "--parts", "bench", "--out", str(tmp_path), "--seconds", "200"]) == 0
    results = json.loads((tmp_path / "dry-run-on-the-cpu.json").read_text())
    foreach, fused, unknown = results["parts"]["bench"]["measurements"]
    assert foreach["events"]["ratio"]["median"] > 0 and foreach["graph_error"] == "a CPU has no graphs"
    assert fused["host"]["rounds"] >= 5 and "graph" not in fused
    assert fused["launches_error"] == NO_TIME and "error" not in fused
    assert unknown["error"] == "KeyError: 'no such optimizer'"
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith((tmp_path / "dry-run-on-the-cpu.md").read_text().rstrip())
    assert "| 160x64 | torch fused |" in printed
    assert report.NO_GPU in printed and "## Aims" not in printed
