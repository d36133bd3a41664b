"""The report of the study, also of a journal that is not finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from experiments.study.journal import Run
from experiments.study.methods import StudiedMethod
from experiments.study.report import write_study_report
from experiments.study.run import Outcome
from tests.experiments.study.made_up import ABLATIONS, METHODS, SETTINGS, build, run_all
from tests.markdown import rows_below

Outcomes = Mapping[Run, Outcome]


def report(folder: Path, outcomes: Outcomes, methods: Mapping[str, StudiedMethod] = METHODS) -> tuple[str, Any]:
    path = write_study_report(folder, "study", outcomes, SETTINGS, methods, ABLATIONS)
    figures = json.loads((folder / "study.json").read_text(), parse_constant=pytest.fail)
    return path.read_text(encoding="utf-8"), figures


@pytest.fixture(scope="module")
def outcomes() -> dict[Run, Outcome]:
    return run_all(SETTINGS, METHODS | ABLATIONS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, outcomes: Outcomes) -> tuple[str, Any, Path]:
    folder = tmp_path_factory.mktemp("report") / "new"
    return (*report(folder, outcomes), folder)


def test_the_table_has_the_best_first(whole: tuple[str, Any, Path]) -> None:
    text, figures, _ = whole
    table = rows_below(text, "### Above the best tuned method of each setting")
    assert [row[:3] for row in table] == [
        ["relative", "0.3", "0.0005"],
        ["SGD, decay tuned", "0.3", "0.005"],
        ["SGD", "0.3", "0.0005"],
    ]
    assert table[0][3:6] == ["+0.00 ± 0.00", "+0.00 ± 0.00, w1", "5"]
    assert table[1][3:6] == ["+1.55 ± 0.00", table[1][4], "0"]
    assert rows_below(text, "### Above tuned SGD\n")[0][3] == "-2.00 ± 0.00"
    assert rows_below(text, "### Above tuned SGD, decay tuned")[2][3] == "+0.45 ± 0.00"
    assert "5 of 5 settings have all runs" in text
    assert "| width (3) | depth (2) |" in text
    assert figures["above the best tuned method of each setting"]["sgd"]["for all"]["mean"]["mean"] == pytest.approx(2)
    assert figures["best"] == dict.fromkeys(SETTINGS, "relative")


def test_ablations_are_held_against_the_whole(whole: tuple[str, Any, Path]) -> None:
    text, figures, _ = whole
    table = rows_below(text, "## relative: what it is made of")
    assert [row[0] for row in table] == ["relative", "exact norms"]
    assert table[1][3] == "+2.00 ± 0.00"
    assert figures["ablations"]["exact"]["for each"]["near"] == 0
    assert "exact norms" not in text[text.index("## Test error") : text.index("## Learning rates")]


def test_ablations_that_were_only_tuned_are_held_against_the_whole_too(tmp_path: Path, outcomes: Outcomes) -> None:
    tuned = {run: outcome for run, outcome in outcomes.items() if run.tuning and run.setting in ("w1", "d2")}
    text, _ = report(tmp_path, tuned)
    assert "In tuning, at w1, d2:" in text
    table = rows_below(text, "## relative: what it is made of")
    assert [(row[0], row[4]) for row in table] == [("relative", "+0.0 / +0.0"), ("exact norms", "+2.0 / +2.0")]


def test_other_rates_show_how_sharp_the_choice_is(whole: tuple[str, Any, Path]) -> None:
    text, _, folder = whole
    assert rows_below(text, "## Learning rates")[0] == [
        "SGD",
        "0.3",
        "",
        "+3.9 / +3.9",
        "+2.0 / +2.0",
        "+4.1 / +4.1",
        "",
        "0",
    ]
    assert "![Error against learning rate, one curve for each of 5 settings](study.png)" in text
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")


def test_json_holds_every_tuning_error(whole: tuple[str, Any, Path], outcomes: Outcomes) -> None:
    _, figures, _ = whole
    of_method = figures["methods"]["sgd-decay"]
    place = of_method["grid of lr and weight decay"].index([1.0, 5e-3])
    errors = [outcomes[Run("d2", "sgd-decay", 1.0, 5e-3, seed, True)].test_error for seed in (100, 101)]
    assert of_method["tuning errors"]["d2"][place] == pytest.approx(sum(errors) / 2)
    assert of_method["for all"] == [0.3, 5e-3]
    assert figures["settings"]["d2"]["varies"] == "depth"


def test_what_is_missing_is_said(tmp_path: Path, outcomes: Outcomes) -> None:
    methods = METHODS | {"dog": StudiedMethod("DoG", (1.0,), (0.0,), build)}
    for name, kept, messages in (
        ("whole", outcomes, ["All 250 runs", "Not begun: DoG."]),
        ("nothing", {}, ["Not begun: SGD, SGD, decay tuned, relative, DoG.", "0 of 5 settings", "No setting has all"]),
        (
            "a run for evaluation less",
            {run: outcome for run, outcome in outcomes.items() if (run.setting, run.seed) != ("w1", 3)},
            ["not finished", "4 of 5 settings", "the others are left out", "| SGD | 30 of 30 | 24 of 25 |"],
        ),
        (
            "tuning alone",
            {run: outcome for run, outcome in outcomes.items() if run.tuning},
            ["not finished", "0 of 5 settings", "nothing can be compared", "| SGD | 30 of 30 | 0 of 25 |", "study.png"],
        ),
        (
            "a part of the tuning",
            {run: outcome for run, outcome in outcomes.items() if run.tuning and run.seed == 100},
            ["not finished", "0 of 5 settings", "No setting has all runs for tuning", "| SGD | 15 of 30 | 0 of 0 |"],
        ),
        (
            "one setting",
            {run: outcome for run, outcome in outcomes.items() if run.setting == "d2"},
            ["1 of 5 settings", "| relative | 0.3 | 0.0005 | +0.00 | +0.00 ± 0.00, d2 | 1 |"],
        ),
        (
            "without the relative scale",
            {run: outcome for run, outcome in outcomes.items() if run.method != "relative"},
            ["Not begun: relative, DoG.", "5 of 5 settings"],
        ),
    ):
        text, _ = report(tmp_path / name, kept, methods)
        for message in messages:
            assert message in text, name


def test_rates_at_the_edge_of_the_grid_are_marked(tmp_path: Path) -> None:
    methods = {"sgd": StudiedMethod("SGD", (0.3, 1.0, 3.0), (0.0,), build)}
    text, _ = report(tmp_path, run_all(SETTINGS, methods), methods)
    assert rows_below(text, "### Above tuned SGD")[0][1] == "0.3 (edge)"
    assert rows_below(text, "## Learning rates")[0][-1] == "5"
