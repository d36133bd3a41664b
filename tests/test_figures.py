"""The figures that README and docs/performance.md show are those of the reports that programs wrote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.markdown import rows_below

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def table(document: str, heading: str) -> list[list[str]]:
    """Returns the cells of the first table from a heading on, without its first two lines."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert heading in text, f"{document}: no {heading!r}"
    rows = [[cell.replace("*", "") for cell in row] for row in rows_below(text, heading)]
    assert rows
    return rows


def check_rounded(shown: str, measured: str) -> None:
    """Checks that each number shown is the measured one, rounded to the digits that are shown."""
    numbers, exact = NUMBER.findall(shown), NUMBER.findall(measured)
    assert len(numbers) == len(exact) > 0, f"{shown!r} is not of {measured!r}"
    for number, value in zip(numbers, exact, strict=True):
        half = 0.5 * 10.0 ** -len(number.partition(".")[2])
        assert abs(float(number) - float(value)) <= half + 1e-9, f"{shown!r} is not {measured!r} rounded"


def test_the_check_finds_a_wrong_digit() -> None:
    check_rounded("0.97 [0.95, 0.99]", "0.965 [0.953, 0.989]")
    for wrong in ("0.96 [0.95, 0.99]", "0.97 [0.95]"):
        with pytest.raises(AssertionError):
            check_rounded(wrong, "0.970 [0.953, 0.989]")


def test_speed_in_performance_is_the_benchmarks() -> None:
    measured = {tuple(row[i] for i in (0, 1, 2, 4)): row for row in table("bench/results/cpu.md", "| network")}
    for network, threads, time, against, its_time, ratio, _, rate, copy_rate in table(
        "docs/performance.md", "| network"
    ):
        row = measured[network, threads, "native", against]
        assert [time, its_time] == [row[3], row[5]], f"{network}, {threads} threads"
        check_rounded(ratio, row[6])
        check_rounded(f"{rate}, {copy_rate}", f"{row[10]}, {row[11]}")


def test_speed_in_readme_is_that_of_performance() -> None:
    rows = {(row[0], row[1]): row for row in table("docs/performance.md", "| network") if row[3] == "torch fused"}
    shown = table("README.md", "| network")
    assert len(rows) == 2 * len(shown)  # no network is left out
    for name, *cells in shown:
        for threads, found in (("1", cells[:3]), ("2", cells[3:])):
            row = rows[name.split()[0], threads]
            assert found == [row[2], row[4], row[5]], f"{name}, {threads} threads"


def test_evidence_in_readme_is_the_studys() -> None:
    measured = {row[0]: row for row in table("docs/results/one-learning-rate.md", "### Above tuned SGD")}
    for method, rate, mean, worst, within in table("README.md", "| method"):
        row = measured["relative" if "relative" in method else method]
        assert [rate, within] == [row[1], row[5]], method
        check_rounded(f"{mean}, {worst}", f"{row[3]}, {row[4].split()[0]}")


def test_the_autoencoders_table_is_that_of_its_report() -> None:
    report = "docs/results/autoencoder.md"
    by_updates, by_time = (
        {row[0]: row for row in table(report, heading)} for heading in ("## After 250 updates", "## After 20 seconds")
    )
    shown = table("docs/results.md", "## An autoencoder")
    assert [row[0] for row in shown] == list(by_updates)
    for name, *cells in shown:
        assert cells[:4] == [*by_updates[name][1:3], *by_time[name][1:3]]
        check_rounded(cells[4], by_updates[name][5])
