"""The comparison of preconditioned training steps runs, each turn with the same work."""

from __future__ import annotations

from typing import Any

import pytest

from bench import precondition
from sasgd_fused.precondition import CovariancePreconditioner


def test_the_table_has_a_row_for_each_method(capsys: pytest.CaptureFixture[str]) -> None:
    precondition.main(["--widths", "6", "4", "6", "--batch", "5", "--every", "2", "--rounds", "2"])
    text = capsys.readouterr().out
    assert "6-4-6, batch 5, every 2, threads 1" in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:] == [
        *precondition.METHODS
    ]


def test_a_turn_takes_the_covariance_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    estimate = CovariancePreconditioner._estimate

    def count_and_estimate(*arguments: Any) -> None:
        taken.append(arguments)
        estimate(*arguments)

    monkeypatch.setattr(CovariancePreconditioner, "_estimate", count_and_estimate)
    turn, spent = precondition.make_turn({}, (6, 4, 6), batch=5, every=3, device="cpu")
    for count in (1, 2):
        turn()
        assert len(taken) == 2 * count and len(spent) == count, "two layers"
