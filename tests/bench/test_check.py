"""`python -m bench --check` compares ratios with those of an earlier run, and its status says what it found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import measure
from bench.__main__ import EFFORTS, RESULTS, main
from bench.check import OK, UNDECIDED, WORSE, judge
from bench.clocks import COPY_BYTES
from bench.machine import machine
from bench.measure import Effort
from bench.rows import Row
from bench.turns import Spread
from tests.bench.inline import Inline

CHECK = ["--networks", "160x64", "--threads", "1", "--check"]


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(COPY_BYTES, "cpu", 2**20)
    monkeypatch.setattr("bench.__main__.RESULTS", tmp_path)
    monkeypatch.setattr("bench.check.Child", Inline)
    monkeypatch.setitem(EFFORTS, "cpu", Effort(rounds=8, seconds=0, blocks=1, limit_s=60))
    return tmp_path


def store(folder: Path, rows: dict[Row, float], **where: Any) -> None:
    """Writes a baseline with these ratios."""
    stored = [
        {"row": asdict(row), "threads": 1, "ratio": asdict(Spread(r, 0.9 * r, 1.1 * r))} for row, r in rows.items()
    ]
    (folder / "cpu.json").write_text(json.dumps({"where": {**machine("cpu"), **where}, "results": stored}))


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
    assert main(CHECK) == 2
    assert capsys.readouterr().out.startswith("UNDECIDED foreach on 160x64")


def test_a_worse_row_is_named_and_gives_status_1(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The foreach backend takes several times torch's fused step: never a hundredth, and never ten thousand times.
    store(results, {Row("160x64", "foreach"): 1e4, Row("160x64", "native, norm pass"): 1e-3})
    assert main([*CHECK, "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[:2] for line in lines) == [["WORSE", "native,"], ["ok", "foreach"]]


def test_without_a_worse_row_the_status_is_0(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unchecked = {  # somebody else's, against something else, one of a curve: all of them would be worse
        Row("160x64", "torch for-loop"): 0.01,
        Row("160x64", "foreach", "reference"): 0.01,
        Row("64x64", "foreach"): 0.01,
    }
    store(results, {Row("160x64", "foreach", aim=0.1): 1e4, **unchecked}, torch="1.0")
    assert main(CHECK) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("The baseline is of another machine: torch: 1.0 then")


def test_what_cannot_be_compared_gives_status_2(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(results, {Row("160x64", "foreach"): 1e4, Row("160x64", "native"): 1e4})
    monkeypatch.setattr(
        measure, "why_unavailable", lambda name, dtype, device: "not compiled" if name == "native" else None
    )
    assert main(CHECK) == 2
    assert "Not measured: native (not compiled)." in capsys.readouterr().out
    assert main([*CHECK, "--networks", "VGG16"]) == 2
    assert "The baseline has no such rows." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([*CHECK, "missing"])
    assert "missing.json is not in" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cpu", "others"])
def test_stored_baselines_can_be_checked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def nothing(child: object, left: list[Any], *rest: object) -> list[Any]:
        seen.extend(left)
        return []

    monkeypatch.setattr("bench.__main__.RESULTS", RESULTS)
    monkeypatch.setattr("bench.check.measure_all", nothing)
    main(["--check", name, "--threads", "2"])
    assert {row.contender for (row,), _ in seen} >= {"native", "foreach", "native, frozen norms"}
