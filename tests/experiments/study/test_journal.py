"""The journal: what was written is read, whatever moment it was cut off at."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.study.journal import Journal, Run, read_journal
from experiments.study.run import Outcome
from tests.experiments.study.made_up import SETTINGS

RUNS = {
    Run("w1", "sgd", 0.3, 5e-4, 100, True): Outcome(12.3456789, 0.25, 1.5),
    Run("w1", "sgd", 0.3, 5e-4, 0, False): Outcome(90.0, math.inf, 0.125),
    Run("d1", "relative", 0.095, 0.0, 1, False): Outcome(0.0, 1e-3, 2.0),
}


def write(path: Path) -> Path:
    with Journal(path, SETTINGS, Outcome.from_json) as journal:
        for run, outcome in RUNS.items():
            journal.add(run, outcome)
        assert journal.outcomes == RUNS
    return path


def test_what_was_added_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "folder" / "journal.jsonl")
    assert read_journal(path, Outcome.from_json) == RUNS
    with Journal(path, SETTINGS, Outcome.from_json) as journal:
        assert journal.outcomes == RUNS


def test_every_line_is_json_that_others_can_read(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in write(tmp_path / "j").read_text().splitlines()]
    assert [line["setting"] for line in lines] == ["w1", "w1", "w1", "d1", "d1"]
    assert ["definition" in line for line in lines] == [True, False, False, True, False]
    assert lines[2]["train_loss"] is None


def test_a_journal_that_was_cut_off_anywhere_goes_on(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    breaks = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for end in sorted({*range(0, len(whole), 10), *breaks, *(place + 1 for place in breaks)}):
        path.write_bytes(whole[:end])
        kept = dict(list(RUNS.items())[: sum("lr" in json.loads(line) for line in whole[:end].split(b"\n")[:-1])])
        assert read_journal(path, Outcome.from_json) == kept, end
        with Journal(path, SETTINGS, Outcome.from_json) as journal:
            for run, outcome in RUNS.items():
                if run not in journal.outcomes:
                    journal.add(run, outcome)
        assert path.read_bytes() == whole, end


def test_the_first_of_two_lines_for_a_run_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "journal")
    with Journal(path, SETTINGS, Outcome.from_json) as journal:
        journal.add(next(iter(RUNS)), Outcome(99.0, 1.0, 1.0))
    assert read_journal(path, Outcome.from_json) == RUNS


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"setting": "w1"}', '{"definition": {}}', "\0\0"])
def test_a_line_that_is_no_run_is_named(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "journal")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"in line 6 of .*, want a run"):
        Journal(path, SETTINGS, Outcome.from_json)


def test_runs_of_another_setting_are_not_gone_on_with(tmp_path: Path) -> None:
    path = write(tmp_path / "journal")
    with pytest.raises(ValueError, match=r"with runs of d1 as .*'epochs': 1.* want .*'epochs': 2"):
        Journal(path, SETTINGS | {"d1": replace(SETTINGS["d1"], epochs=2)}, Outcome.from_json)
    with Journal(
        path, SETTINGS | {"new": SETTINGS["d2"], "d2": replace(SETTINGS["d2"], epochs=2)}, Outcome.from_json
    ) as journal:
        assert journal.outcomes == RUNS  # no run is of these
