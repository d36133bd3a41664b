"""What `make gpu-check` concludes from the tests and from compute-sanitizer, and when it gives up waiting."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from time import monotonic
from typing import Any

import pytest
import torch

from bench.gpu import machine, sanitizer, small_case, suite
from bench.gpu.command import ROOT, run
from bench.gpu.sanitizer import judge
from sasgd_fused.backends import BACKENDS
from tests.kernels.native_programs import give_up
from tests.processes import has_ended

CLEAN = "========= ERROR SUMMARY: 0 errors\n"
CLEAN_RACECHECK = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


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
    assert monotonic() - start < 8
    assert not ended.ok and not ended.in_time
    assert ended.why() == "stopped after 1 s\nbegun\nwriting it down"


def test_a_program_that_does_not_heed_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.command.GRACE_S", 0.5)
    start = monotonic()
    ended = run(["sh", "-c", "trap '' INT; sleep 60 & echo $!; wait; sleep 60"], limit=0.5)
    assert monotonic() - start < 20
    assert has_ended(int(ended.output))


def test_words_of_a_program_come_without_the_places_of_this_machine() -> None:
    ended = run([sys.executable, "-c", f"print({str(ROOT / 'bench')!r}, {sys.prefix!r} + '/lib'); exit(2)"], limit=30)
    assert ended.why() == "exit status 2\nbench lib"


@pytest.fixture
def some_tests(tmp_path: Path) -> Path:
    path = tmp_path / "test_some.py"
    path.write_text(
        dedent(
            """
            import os, time
            import pytest

            def test_device():
                assert os.environ["SASGD_TEST_DEVICE"] == "cuda"
                assert os.environ["SASGD_REQUIRE_BACKENDS"] == "reference,foreach,native,triton"

            @pytest.mark.parametrize("value", [1, 2])
            def test_values(value):
                assert value == 1, "not one"

            def test_elsewhere():
                pytest.skip("no second device")

            def test_long():
                time.sleep(float(os.environ.get("LONG", 0)))
            """
        )
    )
    return path


def test_tests_are_counted_and_failures_named(some_tests: Path) -> None:
    found: dict[str, Any] = suite.run_tests("cuda", limit=60, tests=str(some_tests))
    assert [found[name] for name in ("ok", "passed", "failed", "errors", "skipped")] == [False, 3, 1, 0, 1]
    (failure,) = found["failures"]
    assert failure["name"].endswith("test_some::test_values[2]")
    assert failure["message"].startswith("AssertionError: not one")
    assert found["skips"] == {"no second device": 1}
    assert found["error"].startswith("exit status 1\n")
    assert len(found["slowest_s"]) == 5


def test_tests_that_outlast_their_time_fail_with_what_they_had(
    some_tests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONG", "60")
    found: dict[str, Any] = suite.run_tests("cuda", limit=8, tests=str(some_tests))
    assert not found["ok"]
    assert (found["passed"], found["failed"], found["skipped"]) == (2 + 1, 1, 1), "pytest counts the one under way"
    assert found["error"].startswith("stopped after")


@pytest.mark.parametrize(
    ("output", "ended_well", "ok", "errors"),
    [
        (CLEAN, True, True, 0),
        (CLEAN_RACECHECK, True, True, 0),
        (CLEAN, False, False, 0),  # the case itself failed
        ("nothing was said", True, False, None),
        ("========= ERROR SUMMARY: 1 error\n", False, False, 1),
        (CLEAN + "========= ERROR SUMMARY: 3 errors\n", True, False, 3),  # of two processes
        ("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n", False, False, 1),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n", True, False, 2),
        ("========= Error: Device not supported. Please refer to the documentation\n", False, None, None),
    ],
)
def test_a_verdict_needs_a_clean_summary_and_a_good_end(
    output: str, ended_well: bool, ok: bool | None, errors: int | None
) -> None:
    assert judge(output, ended_well) == {"ok": ok, "errors": errors}


@pytest.mark.parametrize("place", ["path", "toolkit/bin", "toolkit/compute-sanitizer", "site/nvidia/cu13/bin"])
def test_the_sanitizer_is_found_wherever_it_is_installed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sanitizer, "USUAL_PLACE", tmp_path / "nowhere/bin/nvcc")
    monkeypatch.setattr(sanitizer, "find_nvcc", lambda: script(tmp_path / "toolkit/bin/nvcc", "exit"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "site"))
    assert sanitizer.find_program() is None
    program = script(tmp_path / place / "compute-sanitizer", "exit")
    assert sanitizer.find_program() == str(program)


@pytest.fixture
def fake_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that finds an error with $TOOL_WITH_ERROR, and a small case that does nothing."""
    monkeypatch.setattr(sanitizer, "python", lambda *arguments: ["sh", "-c", "exit $CASE_STATUS"])
    monkeypatch.setenv("CASE_STATUS", "0")
    program = script(
        tmp_path / "compute-sanitizer",
        f"""
        test "$1" = --version && echo 'Version 2025.3.0' && exit
        test -n "$PYTORCH_NO_CUDA_MEMORY_CACHING" || exit 5
        test "$1" = "--tool=$TOOL_WITH_ERROR" && echo '========= ERROR SUMMARY: 2 errors' && exit 9
        test "$1" = --tool=racecheck && echo '{CLEAN_RACECHECK.strip()}' || echo '{CLEAN.strip()}'
        """,
    )
    monkeypatch.setattr(sanitizer, "find_program", lambda: str(program))
    return program


def test_all_tools_run_over_the_small_case(fake_sanitizer: Path) -> None:
    found: dict[str, Any] = sanitizer.check("cuda", limit=60)
    assert found["ok"] is True and found["version"] == "2025.3.0"
    assert {tool: (seen["ok"], seen["errors"]) for tool, seen in found["tools"].items()} == dict.fromkeys(
        ("memcheck", "racecheck", "synccheck", "initcheck"), (True, 0)
    )


@pytest.mark.parametrize("tool", sanitizer.TOOLS)
def test_an_error_of_any_tool_fails_the_check(tool: str, fake_sanitizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL_WITH_ERROR", tool)
    found: dict[str, Any] = sanitizer.check("cuda", limit=60)
    assert found["ok"] is False
    assert [name for name, seen in found["tools"].items() if seen["ok"] is False] == [tool]
    assert "2 errors" in found["tools"][tool]["error"]


def test_a_sanitizer_that_is_absent_is_no_failure(fake_sanitizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "find_program", lambda: None)
    found = sanitizer.check("cuda", limit=60)
    assert found["ok"] is None and "was not found" in str(found["error"])


def test_a_small_case_that_fails_by_itself_is_not_blamed_on_the_sanitizer(
    fake_sanitizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASE_STATUS", "4")
    found = sanitizer.check("cuda", limit=60)
    assert found["ok"] is False and str(found["error"]).startswith("the small case fails without compute-sanitizer")


@pytest.mark.parametrize("broken", ["native", "triton"])
def test_the_small_case_holds_backends_against_the_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["small_case", "cpu"])
    monkeypatch.setattr(small_case, "OPTIONS", small_case.OPTIONS[:1])
    if reason := BACKENDS["triton"].why_not(torch.device("cpu"), []):
        give_up(reason, "triton")
    small_case.main()
    assert "2 runs of 3 steps over 24 tensors are as the reference's" in capsys.readouterr().out
    right = small_case.run

    def wrong(backend: str, device: str, options: dict[str, object]) -> Any:
        weights = right(backend, device, options)
        if backend == broken:
            weights[3][1, 2] += 1e-4
        return weights

    monkeypatch.setattr(small_case, "run", wrong)
    with pytest.raises(AssertionError, match="not close"):
        small_case.main()


def test_the_machine_is_described_with_commit_and_state() -> None:
    facts = machine.describe("cpu", commit="abc123-dirty")
    assert (facts["commit"], facts["dirty"]) == ("abc123", True)
    assert machine.describe("cpu", commit="abc123")["dirty"] is False
    assert facts["device"] == "dry run on the CPU" and facts["torch"]


def test_a_gpu_is_described_by_torch_and_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, multi_processor_count = "NVIDIA H200", 9, 0, 132
        total_memory, L2_cache_size, uuid = 150_000_000_000, 60_000_000, "1-2"

    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: Properties)
    script(tmp_path / "nvidia-smi", 'test "$1" = --id=GPU-1-2 && echo "580.1, 1980 MHz, 3201 MHz, 700.00 W"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    facts = machine.describe("cuda", commit="abc")
    assert facts["device"] == "NVIDIA H200" and machine.file_name(str(facts["device"])) == "nvidia-h200"
    assert (facts["compute capability"], facts["L2 MB"], facts["memory GB"]) == ("9.0", 60.0, 150.0)
    assert (facts["driver"], facts["highest memory clock"]) == ("580.1", "3201 MHz")


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_takes_the_first_python_that_sees_a_gpu(tmp_path: Path) -> None:
    def make(python: Path, venv: Path) -> subprocess.CompletedProcess[str]:
        command = ["make", "gpu-check", f"PYTHON={python}", f"VENV={venv}", "OPTIONS=--parts tests"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    blind = script(tmp_path / "blind", "exit 1")
    sees = script(tmp_path / "venv/bin/python", f'echo "$@" >> {tmp_path}/log')
    assert make(blind, sees.parents[1]).returncode == 0
    assert (tmp_path / "log").read_text().splitlines()[-1] == "-m bench.gpu --parts tests"
    nobody = make(blind, tmp_path / "none")
    assert nobody.returncode != 0 and f"Neither {blind} nor {tmp_path}/none/bin/python" in nobody.stdout
