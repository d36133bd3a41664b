"""Tables and picture over parameters, tensors and dtype show what was measured, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cases import parameter_count, shapes_of
from bench.interleave import Spread
from bench.measure import Effort, Result, measure
from bench.memory import Memory
from bench.report import curve_table, memory_table
from bench.rows import CURVES, MEMORY_CASE, Row
from bench.table import main


def result(
    case: str, contender: str, against: str = "torch fused", dtype: str = "float32", time: float = 2.0
) -> Result:
    one = Spread(1.5, 1.4, 1.6)
    return Result(Row(case, contender, against, dtype=dtype), 1, 8, time, time / 1.5, one, one, 28, 7.5, 40.0)


def test_points_are_what_they_say() -> None:
    parameters, tensors, _ = CURVES
    assert [parameter_count(case) for case, _ in parameters.points.values()] == list(parameters.points)
    assert [len(shapes_of(case)) for case, _ in tensors.points.values()] == list(tensors.points)
    assert {parameter_count(case) for case, _ in tensors.points.values()} == {2**20}


def test_contenders_of_a_group_take_turns_and_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.interleave.COPY_BYTES", 2**20)
    rows = [Row("64x64", name, dtype="bfloat16", against="torch foreach") for name in ("reference", "torch for-loop")]
    slow, fast = measure(rows, threads=1, effort=Effort(rounds=5, seconds=0, blocks=2))
    assert [slow.row, fast.row] == rows
    assert slow.against_ms == fast.against_ms and slow.control == fast.control, "of the same rounds"
    assert slow.time_ms > fast.time_ms
    assert fast.bytes_per_parameter == 10


def test_a_cell_has_time_and_ratio_and_is_empty_where_nothing_was_measured() -> None:
    results = [
        result("64x65536", "native"),
        result("64x65536", "optimi SGD", time=0.5),
        result("64x65536", "native", "torch foreach", "bfloat16"),
    ]
    table = curve_table(CURVES[2], 1, results)
    assert "|  | float32 | bfloat16, × torch foreach |" in table
    assert "| native | 2.00 ms, × 1.50 | 2.00 ms, × 1.50 |" in table
    assert "| optimi SGD | 500 us, × 1.50 |  |" in table
    assert curve_table(CURVES[1], 1, results) == ""


def test_the_memory_table_has_bytes_and_bandwidths() -> None:
    table = memory_table([Memory("timm LAMB", 8.0, 4.04)], [result(MEMORY_CASE, "timm LAMB")])
    assert "| timm LAMB | 28 | 7.5 | 40.0 | 8.0 | 4.0 |" in table


def test_the_command_writes_table_figures_and_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("bench.interleave.COPY_BYTES", 2**20)
    monkeypatch.setattr("bench.table.RUNS", tmp_path)
    monkeypatch.setattr("bench.rows.FIELD", ("torch fused", "foreach", "torch for-loop"))
    monkeypatch.setattr("bench.table.MEMORY_CASE", "64x64")
    monkeypatch.setattr("bench.report.MEMORY_CASE", "64x64")
    monkeypatch.setattr("bench.table.measure_memory", lambda name, case, threads: Memory(name, 4.0, float(threads)))
    assert main(["--quick", "--cases", "64x64", "64x1024", "--threads", "1"]) == 0
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert len(stored["results"]) == 6
    assert stored["memory"][0] == {"contender": "torch fused", "state": 4.0, "during_step": 1.0}
    assert "|  | 4096 | 65536 |" in (tmp_path / "bench.md").read_text()
