"""The trace of a step has the functions that it calls, in their order, and no others."""

from __future__ import annotations

import re
import sys

import pytest

from sasgd_fused.factors import decay_scale, layer_scale
from tools import trace_step
from tools.trace_step import Call


def test_functions_stand_in_the_order_of_their_calls() -> None:
    def function() -> None:
        layer_scale(1.0, 1.0, 1e-3)
        [sys.intern(name) for name in ("a", "b")]
        decay_scale(1.0, 1.0, 0.0, "shape")

    before = sys.getprofile()
    assert trace_step.calls_of(function) == [Call("factors.py", "layer_scale"), Call("factors.py", "decay_scale")]
    assert sys.getprofile() is before


def test_files_are_those_that_a_step_comes_to() -> None:
    calls = [Call("a.py", "f"), Call("a.py", "g"), Call("b.py", "h"), Call("a.py", "f")]
    assert list(trace_step.stays(calls)) == [("a.py", ["f", "g"]), ("b.py", ["h"]), ("a.py", ["f"])]


def test_a_step_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["trace_step"])
    monkeypatch.setattr(trace_step, "CASES", {"reference": {"backend": "reference"}})
    trace_step.main()
    printed = capsys.readouterr().out
    assert "| reference | " in printed and re.search(r"optimizer\.py +(ScaleAmendedSGD\.)?step", printed)
