"""Programs are stopped so that they can write down what they have, and NVIDIA's are found where they may be."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.kernels.toolchain import write_script
from tests.processes import has_ended
from tools import programs
from tools.programs import ROOT, find_program, run


@pytest.fixture(params=["in the foreground", "in the background"])
def started(request: pytest.FixtureRequest) -> Iterator[None]:
    """How a shell has started this process: with `&`, it ignores interrupts."""
    before = signal.getsignal(signal.SIGINT)
    if request.param == "in the background":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_program_that_takes_too_long_is_interrupted_first(started: None) -> None:
    start = monotonic()
    ended = run(
        ["sh", "-c", "trap 'echo writing it down; exit 3' INT; echo begun; while :; do sleep 0.1; done"], limit=1
    )
    assert monotonic() - start < programs.GRACE_S, "not by force"
    assert not ended.ok and not ended.in_time
    assert ended.why().startswith("stopped after ") and ended.why().endswith("\nbegun\nwriting it down")


def test_a_program_that_does_not_heed_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "GRACE_S", 0.5)
    ended = run(["sh", "-c", "trap '' INT; sleep 600 & echo $!; wait; sleep 600"], limit=1)
    assert has_ended(int(ended.output), seconds=60)


def test_words_of_a_program_come_without_the_places_of_this_machine() -> None:
    words = f"print({str(ROOT / 'bench')!r}, {sys.prefix!r} + '/lib'); raise SystemExit(2)"
    ended = run([sys.executable, "-Sc", words], limit=60)
    assert ended.why() == "exit status 2\nbench lib"


@pytest.mark.parametrize("place", ["path", "toolkit/bin", "toolkit/compute-sanitizer", "site/nvidia/cu13/bin"])
def test_a_program_of_nvidia_is_found_wherever_it_is_installed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(programs, "USUAL_PLACE", tmp_path / "nowhere/bin/nvcc")
    monkeypatch.setattr(programs, "find_nvcc", lambda: write_script(tmp_path / "toolkit/bin/nvcc"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "site"))
    assert find_program("compute-sanitizer") is None
    program = write_script(tmp_path / place / "compute-sanitizer")
    assert find_program("compute-sanitizer") == str(program)
