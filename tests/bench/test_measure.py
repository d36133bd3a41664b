"""What takes turns, what is concluded from it, and what becomes of contenders that fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from bench import clocks
from bench.cases import parameter_count, shapes_of
from bench.child import CallFailed, Child, ProcessLost
from bench.contenders import COMPILED, CONTENDERS, LARS
from bench.measure import Effort, Result, measure, measure_all
from bench.rows import CURVES, FIELD, GPU_NETWORKS, Group, Row, available, groups_of

EFFORT = Effort(rounds=4, seconds=0, blocks=2, limit_s=60)


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(clocks.COPY_BYTES, "cpu", 2**20)


def test_a_measurement_counts_the_rounds_of_all_blocks() -> None:
    (result,) = measure([Row("160x64", "torch for-loop")], 1, EFFORT, "cpu")
    assert result.rounds == 4
    assert result.gb_per_s == pytest.approx(20 * 10_240 / (result.time_ms * 1e6))
    assert result.ratio.low <= result.ratio.median <= result.ratio.high
    assert result.host_us is None, "on a CPU it is the time of the step"


def test_contenders_of_a_group_take_turns_and_are_told_apart() -> None:
    rows = [Row("64x64", name, "torch foreach", dtype="bfloat16") for name in ("reference", "torch for-loop")]
    slow, fast = measure(rows, 1, EFFORT, "cpu")
    assert [slow.row, fast.row] == rows
    assert slow.against_ms == fast.against_ms and slow.control == fast.control, "of the same rounds"
    assert slow.time_ms > fast.time_ms
    assert fast.bytes_per_parameter == 10


def test_a_step_with_impossible_values_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CONTENDERS["torch foreach"]

    def spoilt(parameters: list[torch.Tensor]) -> Any:
        optimizer, step = right(parameters)
        parameters[1].data[2] = float("nan")
        return optimizer, step

    monkeypatch.setitem(CONTENDERS, "torch foreach", spoilt)
    with pytest.raises(RuntimeError, match="weight of parameter 1 has denormal or non-finite values"):
        measure([Row("64x64", "torch foreach")], 1, EFFORT, "cpu")


class Children(Child):
    """Answers for child processes: every contender runs, but those that are named."""

    def __init__(self, **failures: Exception) -> None:
        super().__init__()
        self.failures = failures
        self.asked: list[list[str]] = []

    def call(self, limit_s: float, function: Callable[..., Any], *arguments: Any) -> Any:
        if function is not measure:
            contender, *_ = arguments
            return "wrong steps" if contender == "optimi SGD" else None
        names = [row.contender for row in arguments[0]]
        self.asked.append(names)
        for name in names:
            if name in self.failures:
                raise self.failures[name]
        return names


def measured(child: Children, *groups: Sequence[str], cases: Sequence[str] = ("64x64",)) -> dict[str, str]:
    """Measures groups of contenders on each case; returns what is left out."""
    left_out: dict[str, str] = {}
    wanted: list[tuple[Group, int]] = [([Row(case, name) for name in group], 1) for case in cases for group in groups]
    assert all(measure_all(child, wanted, EFFORT, "cpu", left_out.__setitem__))
    return left_out


def test_a_group_that_fails_is_measured_one_by_one() -> None:
    child = Children(foreach=CallFailed("ValueError: no"))
    left_out = measured(child, ["native", "foreach", "reference"], ["torch foreach"])
    assert child.asked == [
        ["native", "foreach", "reference"],
        *(["native"], ["foreach"], ["reference"]),
        ["torch foreach"],
    ]
    assert left_out == {"foreach on 64x64 in float32": "ValueError: no"}


def test_an_exception_costs_a_row_and_a_lost_process_the_contender() -> None:
    child = Children(native=ProcessLost("stopped after 60 s"), foreach=CallFailed("RuntimeError: out of memory"))
    left_out = measured(child, ["native"], ["foreach"], ["reference"], cases=["64x64", "160x64"])
    assert Counter(name for names in child.asked for name in names) == {"native": 1, "foreach": 2, "reference": 2}
    assert left_out["native on 64x64 in float32"] == "stopped after 60 s"
    assert left_out["native"] == "left out after native on 64x64 in float32"


def test_what_cannot_run_is_left_out_and_said_once() -> None:
    child = Children()
    left_out = measured(child, ["optimi SGD", "native"], ["optimi SGD"])
    assert left_out == {"optimi SGD": "wrong steps"}
    assert child.asked == [["native"]]


def test_everything_in_a_group_shares_case_dtype_and_against() -> None:
    def is_missing(contender: str, dtype: str) -> bool:
        return (contender, dtype) in {("torch fused", "bfloat16"), ("native", "float32")}

    groups = [available(group, is_missing) for group in groups_of("cpu", CONTENDERS)]
    for group in groups:
        assert len({(row.case, row.dtype, row.against) for row in group}) <= 1
        assert len({row.contender for row in group}) == len(group)
        assert not any(is_missing(name, row.dtype) for row in group for name in (row.contender, row.against))
    assert {row.against for group in groups for row in group if row.dtype == "bfloat16"} == {"torch foreach"}
    assert list(FIELD) in [[row.contender for row in group] for group in groups]


def test_both_lars_are_measured_beside_the_relative_scale() -> None:
    rows = [row for group in groups_of("cpu", LARS, ["ResNet-50"]) for row in group]
    assert [(row.contender, row.against) for row in rows] == [(name, "native, relative") for name in LARS]


def test_points_of_curves_are_what_they_say() -> None:
    parameters, tensors, _ = CURVES
    assert [parameter_count(case) for case, _ in parameters.points.values()] == list(parameters.points)
    assert [len(shapes_of(case)) for case, _ in tensors.points.values()] == list(tensors.points)
    assert {parameter_count(case) for case, _ in tensors.points.values()} == {2**20}


def test_on_a_gpu_what_matters_most_comes_first_and_compiling_last() -> None:
    rows = [row for group in groups_of("cuda", CONTENDERS) for row in group]
    kernels = [(case, name) for case in GPU_NETWORKS for name in ("native", "triton")]
    assert [(row.case, row.contender) for row in rows[: len(kernels)]] == kernels
    assert all(row.contender in CONTENDERS and row.against in CONTENDERS for row in rows)
    assert sorted(rows, key=lambda row: row.contender == COMPILED) == rows
    copied = [row.case for row in rows if row.copy_aim]
    assert copied == ["VGG16", "Pythia-1B"] * 2, "by events and by replayed graphs"
    chosen = groups_of("cuda", ["native"], ["VGG16", "64x64"])
    assert {(row.case, row.contender) for group in chosen for row in group} == {
        ("VGG16", "native"),
        ("64x64", "native"),
    }


def test_a_result_comes_back_from_json() -> None:
    (result,) = measure([Row("64x64", "torch for-loop")], 1, EFFORT, "cpu")
    fields = {**vars(result), "row": vars(result.row), "ratio": vars(result.ratio), "control": vars(result.control)}
    assert Result.from_json(fields) == result
