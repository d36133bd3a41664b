"""`python -m bench` writes what it measures at once, goes on where it was stopped, and says what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.__main__ import EFFORTS, main
from bench.clocks import COPY_BYTES
from bench.measure import Effort
from bench.memory import Memory
from tests.bench.inline import Inline

QUICK = ["--threads", "1", "--rounds", "4", "--out", "smoke"]
FIELD = ("torch fused", "foreach", "torch for-loop")


@pytest.fixture
def smoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the command writes to."""
    monkeypatch.setitem(COPY_BYTES, "cpu", 2**20)
    monkeypatch.setattr("bench.__main__.RESULTS", tmp_path / "results")
    monkeypatch.setattr("bench.__main__.Child", Inline)
    monkeypatch.setitem(EFFORTS, "cpu", Effort(rounds=2, seconds=0, blocks=1, limit_s=60))
    return tmp_path / "results" / "smoke"


def measured(smoke: Path) -> list[tuple[str, str]]:
    stored = json.loads(smoke.with_suffix(".json").read_text())
    return [(result["row"]["case"], result["row"]["contender"]) for result in stored["results"]]


def test_it_prints_what_it_writes(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("bench.table.MEMORY_CASE", "64x64")
    monkeypatch.setattr("bench.report.MEMORY_CASE", "64x64")
    monkeypatch.setattr("bench.__main__.measure_memory", lambda name, threads, device: Memory(name, 4.0, threads))
    networks = ["--networks", "160x64", "64x64", "64x1024"]
    assert main([*QUICK, *networks, "--contenders", "torch foreach", *FIELD]) == 0
    printed = capsys.readouterr().out
    assert smoke.with_suffix(".md").read_text() == printed
    assert smoke.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert {("64x64", name) for name in FIELD} | {("160x64", "torch foreach")} <= set(measured(smoke))
    assert "| 160x64 | 1 | torch foreach |" in printed and "|  | 4096 | 65536 |" in printed
    stored = json.loads(smoke.with_suffix(".json").read_text())
    assert stored["memory"][0] == {"contender": "torch fused", "state": 4.0, "during_step": 1, "launches": None}


def stop_after(rounds: int) -> Callable[..., Any]:
    """Returns a stand-in for `Inline.call` that is interrupted in the measurement after so many."""
    left = [rounds]

    def call(self: Inline, limit_s: float, function: Callable[..., Any], *args: Any) -> Any:
        if function.__name__ == "measure":
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return function(*args)

    return call


def test_a_run_that_is_stopped_keeps_what_it_has_and_the_next_begins_with_the_rest(
    smoke: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [*QUICK, "--networks", "160x64", "--contenders", "foreach", "torch foreach", "torch for-loop"]
    for known in (["foreach"], ["foreach", "torch foreach"], ["foreach", "torch foreach", "torch for-loop"]):
        monkeypatch.setattr(Inline, "call", stop_after(1))
        assert main(chosen) == 0
        assert measured(smoke) == [("160x64", name) for name in known]
        assert "Not measured: the rest (stopped)." in smoke.with_suffix(".md").read_text()
    monkeypatch.setattr(Inline, "call", stop_after(3))
    assert main(chosen) == 0
    assert "the rest" not in smoke.with_suffix(".md").read_text()
    monkeypatch.setattr(Inline, "call", stop_after(1))
    monkeypatch.setattr("bench.machine.digest", lambda root: "others")
    main(chosen)
    assert measured(smoke) == [("160x64", "foreach")], "other sources have a table of their own"


def test_what_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--networks", "ResNet-50", "Pythia-1B"])
    assert "--networks: got Pythia-1B, want some of VGG13-CIFAR, " in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cuda"])
    assert "finds no CUDA device here" in capsys.readouterr().err
