"""What a part of `gpu_check.py` came to, by what its program said."""

from __future__ import annotations

import re

from tools.programs import Ended

PASSED, FAILED, INCOMPLETE, IMPOSSIBLE = "passed", "FAILED", "incomplete", "not possible here"
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+)")


def verdict_of(part: str, ended: Ended) -> str:
    """Says what a part came to: a sanitizer has to give a clean summary, tests without a failure may be stopped."""
    verdict = PASSED if ended.ok else FAILED if ended.in_time else INCOMPLETE
    if part.endswith("check"):
        errors = [int(count) for found in SUMMARY.findall(ended.output) for count in found if count]
        if "Device not supported" in ended.output:
            return IMPOSSIBLE
        return FAILED if any(errors) or (not errors and ended.in_time) else verdict
    counts = count_tests(ended.output)
    if counts["failed"] or "error" in counts:
        return FAILED
    if part.startswith("ncu ") or "benchmark" in part:
        return IMPOSSIBLE if verdict == FAILED else verdict
    return verdict


def count_tests(output: str) -> dict[str, int]:
    """Returns pytest's counts; what was under way when it was stopped is not among them."""
    *_, last = ["", *(line for line in output.splitlines() if re.search(r" in [\d.]+s", line))]
    found = {outcome: int(count) for count, outcome in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    return {"passed": 0, "failed": 0, **found}
