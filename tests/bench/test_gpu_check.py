"""What `make gpu-check` runs in which time, what it concludes, and what it keeps of a run that is cut short."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sasgd_fused.backends import BACKENDS
from tests.kernels.native_programs import give_up
from tests.kernels.toolchain import write_script
from tools import gpu_check, small_case
from tools.gpu_check import STAGES, TESTS, command_of, limit_of, main, run_part
from tools.programs import ROOT, Ended, run
from tools.verdicts import FAILED, IMPOSSIBLE, INCOMPLETE, PASSED, count_tests, verdict_of

CLEAN = "========= ERROR SUMMARY: 0 errors\n"
CLEAN_RACECHECK = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
STOPPED = Ended(2, "12 passed, 88 skipped in 30.50s", 36, in_time=False)


@pytest.mark.parametrize(
    ("part", "ended", "verdict"),
    [
        ("build", Ended(0, "", 1, True), PASSED),
        ("build", Ended(1, "", 1, True), FAILED),
        ("tests", STOPPED, INCOMPLETE),
        ("tests", Ended(2, "1 failed, 12 passed in 30.50s", 36, False), FAILED),
        ("tests", Ended(1, "12 passed, 1 error in 30.50s (0:01:00)", 36, True), FAILED),
        ("benchmark", Ended(1, "CUDA error", 1, True), IMPOSSIBLE),
        ("benchmark", Ended(0, "", 1, False), INCOMPLETE),
        ("candidates", Ended(1, "CUDA error", 1, True), FAILED),
        ("ncu VGG16", Ended(1, "ERR_NVGPUCTRPERM", 1, True), IMPOSSIBLE),
        ("memcheck", Ended(0, CLEAN, 1, True), PASSED),
        ("racecheck", Ended(0, CLEAN_RACECHECK, 1, True), PASSED),
        ("memcheck", Ended(1, CLEAN, 1, True), FAILED),  # the case itself failed
        ("memcheck", Ended(0, "nothing was said", 1, True), FAILED),
        ("memcheck", Ended(-2, "", 60, False), INCOMPLETE),
        ("memcheck", Ended(9, "========= ERROR SUMMARY: 1 error\n", 1, True), FAILED),
        ("memcheck", Ended(0, CLEAN + "========= ERROR SUMMARY: 3 errors\n", 1, True), FAILED),  # of two processes
        ("racecheck", Ended(9, "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n", 1, True), FAILED),
        ("racecheck", Ended(0, "RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n", 1, True), FAILED),
        ("memcheck", Ended(1, "========= Error: Device not supported. Please refer\n", 1, True), IMPOSSIBLE),
    ],
)
def test_verdicts(part: str, ended: Ended, verdict: str) -> None:
    assert verdict_of(part, ended) == verdict


def test_pytests_counts_are_read() -> None:
    assert count_tests(STOPPED.output) == {"passed": 12, "failed": 0, "skipped": 88}
    assert count_tests("3 passed of old\n==== 1 failed, 7 passed, 2 errors in 1.00s ====\n") == {
        "failed": 1,
        "passed": 7,
        "error": 2,
    }
    assert count_tests("killed") == {"passed": 0, "failed": 0}


@pytest.mark.nightly
@pytest.mark.parametrize("processes", [0, 2])
def test_tests_that_outlast_their_time_leave_a_junit_file(tmp_path: Path, processes: int) -> None:
    (tmp_path / "test_some.py").write_text(
        dedent(
            """
            import time, pytest

            @pytest.mark.parametrize("value", range(6))
            def test_values(value):
                pass

            @pytest.mark.parametrize("value", range(2))
            def test_long(value):
                time.sleep(600)
            """
        )
    )
    junit = tmp_path / "junit.xml"
    options = ["-q", f"-n{processes}", f"--junitxml={junit}", f"--rootdir={tmp_path}"]
    command = [sys.executable, "-m", "pytest", str(tmp_path), *options]
    unit = run([*command, "-k", "values"], limit=600).seconds
    ended = run(command, limit=3 * unit)
    assert verdict_of("tests", ended) == INCOMPLETE
    assert count_tests(ended.output) == {"passed": 6, "failed": 0}
    assert 'name="test_values[5]"' in junit.read_text()


def test_parts_share_their_stage_and_the_build_gets_what_it_needs() -> None:
    assert limit_of("build", STAGES[1], 50) == 50
    assert limit_of("tests", STAGES[1], 290) == 120
    assert limit_of("tests", STAGES[1], 29) == 12
    assert limit_of("benchmark", STAGES[1], 29) == 29
    assert sum(STAGES[1].values()) + 20 <= 440 and sum(STAGES[2].values()) + 20 <= 275


def test_every_part_has_its_command() -> None:
    assert all(list(ROOT.glob(pattern)) for patterns in TESTS.values() for pattern in patterns)
    files = Path("out/name")
    for part in [part for stage in STAGES.values() for part in stage]:
        command = command_of(part, "cpu", "abc", files)
        assert (command is None) == part.startswith(("memcheck", "racecheck", "ncu")), "on a CPU"
    tests = command_of("more tests", "cpu", None, files)
    assert tests is not None
    assert (
        "--junitxml=out/name-more-tests.xml" in tests and str(ROOT / "tests/product/test_storage_layouts.py") in tests
    )
    benchmark = command_of("benchmark", "cpu", "abc", files)
    assert benchmark is not None
    assert " ".join(benchmark).endswith(
        "--out out/name --commit abc --contenders native triton native, graph triton, graph"
    )
    candidates = command_of("candidates", "cpu", "abc", files)
    assert candidates is not None
    assert " ".join(candidates).endswith("-m tools.measure_candidates --device cpu --out out/name --commit abc")


def checked(monkeypatch: pytest.MonkeyPatch, *options: str, **verdicts: str) -> int:
    """Runs `main` with parts that come to these verdicts, others passed."""

    def run_part(part: str, device: str, commit: str | None, files: Path, limit: float) -> dict[str, Any]:
        return {"verdict": verdicts.get(part, PASSED), "says": "words", "counts": {"passed": 3}}

    monkeypatch.setattr(gpu_check, "run_part", run_part)
    return main(["--device", "cpu", *options])


def test_failures_alone_give_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)]
    checks = tmp_path / "dry-run-on-the-cpu-checks.json"
    assert checked(monkeypatch, *out, "--stage", "1", tests=INCOMPLETE) == 0
    assert list(json.loads(checks.read_text())["parts"]) == list(STAGES[1])
    assert checked(monkeypatch, *out, "--stage", "2", "--commit", "abc", memcheck=FAILED, racecheck=IMPOSSIBLE) == 1
    assert list(json.loads(checks.read_text())["parts"]) == list({**STAGES[1], **STAGES[2]}), "goes on with the first"
    report = checks.with_suffix(".md").read_text()
    assert capsys.readouterr().out.endswith(report + "\n")
    assert "| tests | incomplete | 3 passed | 0 s |" in report and "| memcheck | FAILED |" in report
    monkeypatch.setattr("bench.machine.digest", lambda root: "others")
    assert checked(monkeypatch, *out, build=FAILED) == 1
    assert list(json.loads(checks.read_text())["parts"]) == list({**STAGES[1], **STAGES[2]})
    assert [path.name for path in tmp_path.glob("before-*/*.json")] == [checks.name], "of other sources"


def test_what_is_known_is_written_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_part(part: str, device: str, commit: str | None, files: Path, limit: float) -> dict[str, Any]:
        if part == "tests":
            raise KeyboardInterrupt
        return {"verdict": PASSED, "says": "words"}

    monkeypatch.setattr(gpu_check, "run_part", run_part)
    with pytest.raises(KeyboardInterrupt):
        main(["--device", "cpu", "--out", str(tmp_path)])
    (checks,) = tmp_path.glob("*.json")
    assert list(json.loads(checks.read_text())["parts"]) == ["build", "info", "small case"]


def test_parts_run_on_the_gpu_with_what_they_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    wanted = {"SASGD_TEST_DEVICE": "cuda", "SASGD_BUILD_CUDA": "1", "SASGD_CUDA_ARCHITECTURES": "90"}
    (tmp_path / "test_variables.py").write_text(
        f"import os\n\ndef test_variables():\n    assert {wanted!r}.items() <= os.environ.items()\n"
        "    assert 'native' in os.environ['SASGD_REQUIRE_BACKENDS']\n"
    )
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setitem(TESTS, "tests", ("test_*.py",))
    tests = run_part("tests", "cuda", None, tmp_path / "gpu", limit=600)
    assert (tests["verdict"], tests["counts"]) == (PASSED, {"passed": 1, "failed": 0})
    assert 'name="test_variables"' in (tmp_path / "gpu-tests.xml").read_text()

    needed = 'test "$PYTORCH_NO_CUDA_MEMORY_CACHING" = 1 && echo "ERROR SUMMARY: 0 errors"'
    program = write_script(tmp_path / "compute-sanitizer", f'test "$1" = --tool=memcheck && {needed}')
    monkeypatch.setattr(gpu_check, "find_program", lambda name: str(program))
    assert run_part("memcheck", "cuda", None, tmp_path / "gpu", limit=600)["verdict"] == PASSED
    assert run_part("racecheck", "cuda", None, tmp_path / "gpu", limit=600)["verdict"] == FAILED


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "finds no CUDA device here" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["native", "triton"])
def test_the_small_case_holds_backends_against_the_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["small_case", "cpu"])
    monkeypatch.setattr(small_case, "OPTIONS", small_case.OPTIONS[:1])
    if broken == "native":  # Triton's interpreter takes its time
        monkeypatch.setitem(BACKENDS, "triton", SimpleNamespace(why_not=lambda device, dtypes: "left out"))  # type: ignore[arg-type]
    elif reason := BACKENDS["triton"].why_not(torch.device("cpu"), []):
        give_up(reason, "triton")
    small_case.main()
    runs = {"native": 1, "triton": 2}[broken]
    assert f"{runs} runs of 3 steps over 24 tensors are as the reference's" in capsys.readouterr().out
    right = small_case.run

    def wrong(backend: str, device: str, options: dict[str, object]) -> Any:
        weights = right(backend, device, options)
        if backend == broken:
            weights[3][1, 2] += 1e-4
        return weights

    monkeypatch.setattr(small_case, "run", wrong)
    with pytest.raises(AssertionError, match="not close"):
        small_case.main()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_takes_the_first_python_that_sees_a_gpu(tmp_path: Path) -> None:
    def make(python: Path, venv: Path) -> subprocess.CompletedProcess[str]:
        command = ["make", "gpu-check", f"PYTHON={python}", f"VENV={venv}", "STAGE=2", "OPTIONS=--commit abc"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    blind = write_script(tmp_path / "blind", "exit 1")
    sees = write_script(tmp_path / "venv/bin/python", f'echo "$@" >> {tmp_path}/log')
    assert make(blind, sees.parents[1]).returncode == 0
    assert (tmp_path / "log").read_text().splitlines()[-1] == "-m tools.gpu_check --stage 2 --commit abc"
    nobody = make(blind, tmp_path / "none")
    assert nobody.returncode != 0 and f"Neither {blind} nor {tmp_path}/none/bin/python" in nobody.stdout
