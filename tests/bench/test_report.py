"""Tables and picture show what was measured, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.measure import Result
from bench.memory import Memory
from bench.report import curve_table, format_launches, markdown, memory_table, network_table
from bench.rows import CURVES, MEMORY_CASE, Row
from bench.turns import Spread


def result(row: Row, time: float = 2.0) -> Result:
    return Result(row, 1, 8, time, time / 1.5, Spread(1.5, 1.4, 1.6), Spread(1.0, 0.99, 1.01), 28, 7.5, 40.0)


def test_a_row_shows_missed_aims_and_small_units() -> None:
    table = markdown([result(Row("160x64", "native", aim=0.6), 0.16)], [], {"foreach": "a\nb"}, {"cpu": "some"})
    assert (
        "| 160x64 | 1 | native | 160 µs | torch fused | 107 µs | 1.500 [1.400, 1.600] "
        "| 0.6 (missed) | 1.000 [0.990, 1.010] | 28 | 7.5 | 40.0 |"
    ) in table
    assert "Not measured: foreach (a b)." in table
    assert "at most" in table and "|  |" not in table


def test_aims_for_the_bandwidth_and_the_hosts_time_are_shown_on_a_gpu() -> None:
    at_the_edge = replace(result(Row("VGG16", "native", aim=1.5, copy_aim=0.1875)), host_us=31.0)
    missed = result(Row("VGG16", "triton", dtype="bfloat16", copy_aim=0.1876))
    table = network_table([at_the_edge, result(Row("ResNet-50", "native")), missed])
    assert "| 1.5 (met) | 1.000 [0.990, 1.010] | 28 | 7.5 (0.1875 of a copy met) | 40.0 | 31 µs |" in table
    assert "| VGG16, bfloat16 |" in table and "7.5 (0.1876 of a copy missed) | 40.0 |  |" in table
    assert table.splitlines()[0].endswith("| host |")


def test_rows_of_a_network_stand_together() -> None:
    table = network_table([result(Row(case, name)) for name in ("native", "foreach") for case in ("VGG16", "160x64")])
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| VGG16"] * 2 + ["| 160x64"] * 2


def test_a_cell_has_time_and_ratio_and_is_empty_where_nothing_was_measured() -> None:
    results = [
        result(Row("64x65536", "native")),
        result(Row("64x65536", "optimi SGD"), 0.5),
        result(Row("64x65536", "native", "torch foreach", dtype="bfloat16")),
    ]
    table = curve_table(CURVES[2], 1, results)
    assert "|  | float32 | bfloat16, × torch foreach |" in table
    assert "| native | 2.00 ms, × 1.50 | 2.00 ms, × 1.50 |" in table
    assert "| optimi SGD | 500 µs, × 1.50 |  |" in table
    assert curve_table(CURVES[1], 1, results) == ""


def test_the_memory_table_has_bytes_bandwidths_and_launches() -> None:
    memories = [Memory("timm LAMB", 8.0, 4.04), Memory("native", 4.0, 0.0, {"kernels": 2, "copies": 1, "fills": 0})]
    table = memory_table(memories, [result(Row(MEMORY_CASE, memory.contender)) for memory in memories])
    assert "| timm LAMB | 28 | 7.5 | 40.0 | 8.0 | 4.0 |  |" in table
    assert "| native | 28 | 7.5 | 40.0 | 4.0 | 0.0 | 2 + 1 copies |" in table
    assert format_launches({"kernels": 4, "copies": 0, "fills": 0}) == "4"


def test_the_picture_has_plots_of_several_points_and_plain_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from bench.picture import draw_curves

    drawn: list[Any] = []

    def draw(self: Figure, path: Path, dpi: int) -> None:
        self.canvas.draw()
        drawn.append(self)

    monkeypatch.setattr(Figure, "savefig", draw)
    parameters = [Row(f"64x{elements}", name) for elements in (64, 65536) for name in ("torch fused", "native")]
    dtypes = [Row("64x65536", "native", dtype="bfloat16"), Row("64x65536", "optimi SGD", dtype="bfloat16")]
    results = [result(row, 0.3 * 3**index) for index, row in enumerate([*parameters, *dtypes])]
    draw_curves(tmp_path / "x.png", {"cpu": "some", "torch": "2"}, [*results, result(Row("VGG16", "native"))])
    (figure,) = drawn
    over_parameters, over_dtype = figure.axes
    assert over_parameters.get_xlabel() == "parameters, in 64 tensors of float32", "and none over one number of tensors"
    assert [label.get_text() for label in over_parameters.get_xticklabels()] == ["4,096", "4,194,304"]
    assert {"0.5", "1", "2", "5"} <= {label.get_text() for label in over_parameters.get_yticklabels()}
    assert [label.get_text() for label in over_dtype.get_xticklabels()] == ["float32", "bfloat16"]
    named = {text.get_text() for legend in figure.subfigs[0].legends for text in legend.get_texts()}
    assert named == {"torch fused", "native", "optimi SGD"}
    draw_curves(tmp_path / "x.png", {"cpu": "some", "torch": "2"}, results[:1])
    assert len(drawn) == 1, "no picture of one point"
