"""Builds, tests and measures on this machine's GPU, in two stages without a network: `python -m tools.gpu_check`.

FOLDER/<name of the GPU>-checks.json and .md are written anew whenever a part is over, and those of the benchmark beside
them, so that a run that is cut short leaves what it has, and a later run of the same sources goes on with it. Build,
info, small case, tests, sanitizer and candidates give the exit status; what is stopped is incomplete and no failure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from bench.machine import all_cores, belong_together, file_name, machine
from bench.report import table
from bench.table import write_whole
from tools.programs import GRACE_S, ROOT, find_program, run
from tools.verdicts import FAILED, IMPOSSIBLE, PASSED, count_tests, verdict_of

# Seconds for each part of a stage, in the order of what one wants to know first; what a part leaves goes to the later.
STAGES = {
    1: {"build": 80, "info": 15, "small case": 35, "tests": 120, "benchmark": 170},
    2: {"build": 5, "memcheck": 45, "racecheck": 45, "ncu VGG13-CIFAR": 15, "ncu ResNet-50": 15, "more tests": 40,
        "all of the benchmark": 20, "candidates": 70},
}  # fmt: skip
TESTS = {
    "tests": (
        *("tests/kernels/test_cuda_device.py", "tests/kernels/test_cuda_graphs.py", "tests/product/test_parity.py"),
        *("tests/product/test_norms.py", "tests/product/test_sgd_equivalence.py", "tests/product/test_storage.py"),
        *("tests/product/test_grad_scaler.py", "tests/product/test_memory.py"),
    ),
    "more tests": (
        *("tests/product/test_storage_*.py", "tests/product/test_master_weights.py", "tests/product/test_rounding.py"),
        *("tests/product/test_resume.py", "tests/product/test_checkpoints.py", "tests/product/test_errors.py"),
        *("tests/product/test_wrong_arguments.py", "tests/product/test_compile.py"),
    ),
}
FIRST_CONTENDERS = ("native", "triton", "native, graph", "triton, graph")
SANITIZER = (
    # torch asks the driver for functions that it may lack; errors of our own calls become exceptions.
    "--report-api-errors=no",
    "--error-exitcode=9",
    "--print-limit=10",
)
NCU = ("--clock-control=none", "--set=full", "--kernel-name=regex:step_kernel", "--launch-skip=2", "--launch-count=1")
STEPS = "from bench.cases import setup; made = setup({!r}, 'native', device='cuda'); [made.step() for _ in range(3)]"


def environment(device: str) -> dict[str, str]:
    """Returns the variables that all parts get."""
    # An absent backend is a failure, so that skipped tests cannot pass for success.
    variables = {"SASGD_TEST_DEVICE": device, "SASGD_REQUIRE_BACKENDS": "reference,foreach,native,triton"}
    variables |= {"SASGD_BUILD_NATIVE": "1", "COLUMNS": "300"}  # for pytest's messages
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        variables |= {"SASGD_BUILD_CUDA": "1", "SASGD_CUDA_ARCHITECTURES": f"{major}{minor}"}
    return variables


def command_of(part: str, device: str, commit: str | None, files: Path) -> list[str] | None:
    """Returns a part's command, or None where this machine lacks what it needs.

    Args:
        part: one of a stage's.
        device: `"cuda"` or `"cpu"`.
        commit: where the sources are no checkout.
        files: the path of all files that are written, without what they end in.
    """
    if part in ("memcheck", "racecheck"):
        small_case = [sys.executable, "-m", "tools.small_case", device]
        program = find_program("compute-sanitizer") if device == "cuda" else None
        return [program, f"--tool={part}", *SANITIZER, *small_case] if program else None
    if part.startswith("ncu "):
        network = part.removeprefix("ncu ")
        program = find_program("ncu") if device == "cuda" else None
        log = f"--log-file={files}-ncu-{network}.txt"
        return [program, *NCU, log, sys.executable, "-c", STEPS.format(network)] if program else None
    if part in TESTS:
        paths = [str(path) for pattern in TESTS[part] for path in sorted(ROOT.glob(pattern))]
        # A kernel that never ends is told of by the test that waits for it.
        options = (
            f"-n{min(8, all_cores())}",
            "--quiet",
            "--continue-on-collection-errors",
            "-ofaulthandler_timeout=60",
        )
        return [sys.executable, "-m", "pytest", *options, f"--junitxml={files}-{part.replace(' ', '-')}.xml", *paths]
    benchmark = ["-m", "bench", "--device", device, "--out", str(files), *(("--commit", commit) if commit else ())]
    return [
        sys.executable,
        *{
            "build": ["setup.py", "--quiet", "build_ext", "--inplace"],
            "info": ["-m", "sasgd_fused.info"],
            "small case": ["-m", "tools.small_case", device],
            "benchmark": [*benchmark, "--contenders", *FIRST_CONTENDERS],
            "all of the benchmark": benchmark,
            "candidates": ["-m", "tools.measure_candidates", *benchmark[2:]],
        }[part],
    ]


def run_part(part: str, device: str, commit: str | None, files: Path, limit: float) -> dict[str, Any]:
    """Runs a part for `limit` seconds at most; returns what it came to."""
    command = command_of(part, device, commit, files)
    if command is None:
        return {"verdict": IMPOSSIBLE, "says": "the program was not found, or there is no GPU"}
    # For a sanitizer every tensor is an allocation: in a block of torch's cache nobody sees an access beyond its end.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if part.endswith("check") else {}
    ended = run(command, limit, {**environment(device), **env})
    found: dict[str, Any] = {"verdict": verdict_of(part, ended), "says": ended.why()}
    if part in TESTS:
        failures = [line for line in ended.output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        found |= {"counts": count_tests(ended.output), "failures": failures}
    return found


def limit_of(part: str, stage: Mapping[str, float], left: float) -> float:
    """Returns a part's share of the seconds that are left; the build gets what it needs of them."""
    later = list(stage)[list(stage).index(part) :]
    return left if part == "build" else left * stage[part] / sum(stage[name] for name in later)


def markdown(where: Mapping[str, object], parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what each part came to, and what the failed ones said, and those that answer a question."""
    rows, said = [], []
    for name, part in parts.items():
        counts = ", ".join(f"{count} {outcome}" for outcome, count in part.get("counts", {}).items())
        rows.append((name, part["verdict"], counts, f"{part['seconds']:.0f} s"))
        said += [f"- `{failure}`" for failure in part.get("failures", [])[:20]]
        if name in ("info", "candidates") or part["verdict"] != PASSED:
            said.append(f"{name}:\n\n```\n{part['says']}\n```")
    facts = "; ".join(f"{key}: {fact}" for key, fact in where.items() if fact is not None)
    return "\n\n".join([facts, table("part|verdict||time", "lllr", rows), *said]) + "\n"


def write(figures: Path, where: Mapping[str, object], parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes what is known, with the parts of an earlier run of the same sources on the same machine."""
    earlier = json.loads(figures.read_text()) if figures.is_file() else {"where": {}}
    together = {**(earlier["parts"] if belong_together(earlier["where"], where) else {}), **parts}
    write_whole(figures, json.dumps({"where": where, "parts": together}, indent=1) + "\n")
    write_whole(figures.with_suffix(".md"), markdown(where, together))


def put_aside(files: Path, figures: Path, where: Mapping[str, object]) -> None:
    """Moves what was found with other sources or on another machine into a folder beside."""
    if not figures.is_file() or belong_together(earlier := json.loads(figures.read_text())["where"], where):
        return
    folder = files.with_name(f"before-{file_name(str(earlier['date']))}")
    folder.mkdir(exist_ok=True)
    for path in files.parent.glob(f"{files.name}[-.]*"):
        path.replace(folder / path.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages that are asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description="Build, test and measure on a GPU.")
    parser.add_argument("--stage", type=int, nargs="+", choices=STAGES, default=[*STAGES])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-check", metavar="FOLDER")
    parser.add_argument("--seconds", type=float, help="for a stage, default 440 for the first and 275 for the second")
    parser.add_argument("--commit", help="where the sources are no checkout of git")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device here")
    device = torch.cuda.get_device_name() if chosen.device == "cuda" else "dry run on the CPU"
    files: Path = chosen.out.resolve() / file_name(device)
    files.parent.mkdir(parents=True, exist_ok=True)
    figures = files.with_name(f"{files.name}-checks.json")
    parts: dict[str, Any] = {}
    where: dict[str, object] = {}
    for number in chosen.stage:
        stage = STAGES[number]
        seconds = chosen.seconds or sum(stage.values()) + 20
        end = monotonic() + seconds - min(GRACE_S, seconds / 4)  # what is stopped writes down what it has
        for name in stage:
            start = monotonic()
            limit = limit_of(name, stage, end - start)
            print(f"{name}, at most {limit:.0f} s", flush=True)
            part = run_part(name, chosen.device, chosen.commit, files, limit)
            print(f"{name} {part['verdict']}", flush=True)
            if name == "build":
                where = machine(chosen.device, chosen.commit)  # of what was built, too
                put_aside(files, figures, where)
            parts[name] = {**part, "seconds": monotonic() - start}
            write(figures, where, parts)
            if name == "build" and part["verdict"] != PASSED:
                print(part["says"])  # Triton can do without
    print(figures.with_suffix(".md").read_text())
    return int(any(part["verdict"] == FAILED for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
