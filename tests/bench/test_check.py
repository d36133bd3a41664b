"""`python -m bench.table --check` compares ratios with those of an earlier run, and its status says what it found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.check import OK, UNDECIDED, WORSE, judge
from bench.interleave import Spread
from bench.machine import machine
from bench.rows import Row
from bench.table import main

QUICK = ["--quick", "--threads", "1"]


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("bench.interleave.COPY_BYTES", 2**20)
    monkeypatch.setattr("bench.table.RESULTS", tmp_path)
    return tmp_path


def store(folder: Path, rows: dict[Row, float], **where: Any) -> None:
    """Writes a baseline with these ratios."""
    stored = [
        {"row": asdict(row), "threads": 1, "ratio": asdict(Spread(r, 0.9 * r, 1.1 * r))} for row, r in rows.items()
    ]
    (folder / "cpu.json").write_text(json.dumps({"where": {**machine(), **where}, "results": stored}))


@pytest.mark.parametrize(
    ("low", "control", "verdict"),
    [(1.11, 1.0, WORSE), (1.09, 1.0, OK), (0.49, 1.0, OK), (1.3, 1.2, UNDECIDED), (1.33, 1.2, WORSE), (1.0, 3.0, OK)],
)
def test_worse_is_beyond_both_spreads_and_what_the_control_strays(low: float, control: float, verdict: str) -> None:
    assert judge(Spread(1.2, low, 1.3), Spread(1.0, 0.9, 1.1), Spread(1.0, 0.9, control)) == verdict


def test_an_undecided_row_gives_status_2(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(results, {Row("160x64", "foreach"): 1e4})
    monkeypatch.setattr("bench.check.judge", lambda now, then, control: UNDECIDED)
    assert main([*QUICK, "--check"]) == 2
    assert capsys.readouterr().out.startswith("UNDECIDED foreach on 160x64")


def test_a_worse_row_is_named_and_gives_status_1(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The foreach backend takes several times torch's fused step: never a hundredth, and never ten thousand times.
    store(results, {Row("160x64", "foreach"): 1e4, Row("160x64", "reference"): 0.01})
    assert main([*QUICK, "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["ok", "foreach", "on", "160x64,"],
        ["WORSE", "reference", "on", "160x64,"],
    ]


def test_without_a_worse_row_the_status_is_0(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unchecked = {  # somebody else's, against something else, one of a curve: all of them would be worse
        Row("160x64", "torch for-loop"): 0.01,
        Row("160x64", "foreach", "reference"): 0.01,
        Row("64x64", "foreach"): 0.01,
    }
    store(results, {Row("160x64", "foreach"): 1e4, **unchecked}, torch="1.0")
    assert main([*QUICK, "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("The baseline is of another machine: torch: 1.0 then")


def test_what_cannot_be_compared_gives_status_2(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(results, {Row("160x64", "foreach"): 1e4, Row("160x64", "native"): 1e4})
    monkeypatch.setattr("bench.table.why_unavailable", lambda name, dtype: "not compiled" if name == "native" else None)
    assert main([*QUICK, "--check"]) == 2
    assert "Not measured: native (not compiled)." in capsys.readouterr().out
    assert main([*QUICK, "--check", "--cases", "VGG16"]) == 2
    assert "The baseline has no such rows." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([*QUICK, "--check", "missing"])
    assert "missing.json is not in" in capsys.readouterr().err
