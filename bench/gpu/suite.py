"""Builds the extension in place and runs the test suite on a device."""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from bench.gpu.command import python, run

LONGEST_MESSAGE = 300
SLOWEST = 5


def build(device: str, limit: float) -> dict[str, object]:
    """Build the extension beside the sources; on a GPU it fails where CUDA cannot be compiled."""
    env = {"SASGD_BUILD_NATIVE": "1", **({"SASGD_BUILD_CUDA": "1"} if device == "cuda" else {})}
    ended = run(python("setup.py", "--quiet", "build_ext", "--inplace"), limit, env)
    return {"ok": ended.ok, **({} if ended.ok else {"error": ended.why()})}


def run_tests(device: str, limit: float, tests: str = "tests") -> dict[str, object]:
    """Run the tests on `device` and count them.

    Args:
        device: what the tests find in SASGD_TEST_DEVICE.
        limit: seconds; of the tests that were not over by then only the one under way is counted, as passed.
        tests: what pytest is to run.
    """
    # An absent backend is a failure, so that skipped tests cannot pass for success.
    env = {"SASGD_TEST_DEVICE": device, "SASGD_REQUIRE_BACKENDS": "reference,foreach,native,triton"}
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        ended = run(python("-m", "pytest", tests, "--quiet", f"--junitxml={junit}"), limit, env)
        summary = summarise(junit.read_text()) if junit.is_file() else {}
    if not ended.ok:
        summary["error"] = ended.why()
    return {"ok": ended.ok, **summary}


def summarise(junit: str) -> dict[str, object]:
    """Counts, failures with their messages, reasons of skips, and the slowest tests of pytest's junit file."""
    outcomes: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    failures = []
    times: dict[str, float] = {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        times[name] = float(case.get("time", 0))
        results = {result.tag: result for result in case if result.tag in ("failure", "error", "skipped")}
        if not results:
            outcomes["passed"] += 1
        for tag, result in results.items():
            message = result.get("message", "")[:LONGEST_MESSAGE]
            outcomes[{"failure": "failed", "error": "errors"}.get(tag, tag)] += 1
            if tag == "skipped":
                skips[message] += 1
            else:
                failures.append({"name": name, "message": message})
    slowest = sorted(times, key=times.__getitem__, reverse=True)[:SLOWEST]
    return {
        **{outcome: outcomes[outcome] for outcome in ("passed", "failed", "errors", "skipped")},
        "failures": failures,
        "skips": dict(skips.most_common()),
        "slowest_s": {name: times[name] for name in slowest},
    }
