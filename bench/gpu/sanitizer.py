"""Runs the small case under the tools of NVIDIA's compute-sanitizer, where that is found."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from time import monotonic

from bench.gpu.command import python, run
from tools.cuda import USUAL_PLACE, find_nvcc

PROGRAM = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")  # the first two are what was promised
PROMISED = TOOLS[:2]
OPTIONS = (
    # torch asks the driver for functions that it may lack; errors of our own calls become exceptions.
    "--report-api-errors=no",
    "--error-exitcode=9",
    "--print-limit=10",
)
# Every tensor becomes an allocation of its own: in a block of torch's cache nobody would see an access beyond its end.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+)")
_REFUSED = "Device not supported"


def find_program() -> str | None:
    """Find compute-sanitizer on PATH, in the toolkit of the nvcc that the build takes, or in a package from PyPI."""
    nvcc = find_nvcc()
    toolkits = [path.resolve().parents[1] for path in (nvcc, USUAL_PLACE) if path]
    packages = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    toolkits += [found for folder in packages for found in sorted(folder.glob("nvidia/*"))]
    places = [str(toolkit / folder) for toolkit in toolkits for folder in ("bin", PROGRAM)]
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path=os.pathsep.join(places))


def check(device: str, limit: float) -> dict[str, object]:
    """Run the small case alone, then under each tool for which time is left."""
    deadline = monotonic() + limit
    small_case = python("-m", "bench.gpu.small_case", device)
    alone = run(small_case, limit, ENVIRONMENT)
    if not alone.ok:
        return {"ok": False, "error": f"the small case fails without {PROGRAM}: {alone.why()}"}
    if device == "cpu":
        return {"ok": None, "error": "on a CPU there is nothing to check"}
    program = find_program()
    if program is None:
        return {
            "ok": None,
            "error": f"{PROGRAM} was not found on PATH, in the CUDA toolkit, or among Python's packages",
        }
    version = re.search(r"Version (\S+)", run([program, "--version"], 10).output)
    tools: dict[str, dict[str, object]] = {}
    longest = 0.0
    for tool in TOOLS:
        left = deadline - monotonic()
        if tool not in PROMISED and left < 1.5 * longest:
            tools[tool] = {"ok": None, "error": "no time was left"}
            continue
        ended = run([program, f"--tool={tool}", *OPTIONS, *small_case], left, ENVIRONMENT)
        longest = max(longest, ended.seconds)
        tools[tool] = {**judge(ended.output, ended.ok), "seconds": round(ended.seconds, 1)}
        if not tools[tool]["ok"]:
            tools[tool]["error"] = ended.why()
    return {"ok": _overall(tools), "version": version and version[1], "tools": tools}


def _overall(tools: Mapping[str, Mapping[str, object]]) -> bool | None:
    """False if a tool found something, True if those that were promised found nothing."""
    if any(seen["ok"] is False for seen in tools.values()):
        return False
    return True if all(tools[tool]["ok"] for tool in PROMISED) else None


def judge(output: str, ended_well: bool) -> dict[str, object]:
    """Read a tool's verdict: `ok` is None where the tool refuses the device."""
    if _REFUSED in output:
        return {"ok": None, "errors": None}
    summaries = [sum(int(count) for count in found if count) for found in _SUMMARY.findall(output)]
    return {
        "ok": ended_well and summaries != [] and sum(summaries) == 0,
        "errors": sum(summaries) if summaries else None,
    }
