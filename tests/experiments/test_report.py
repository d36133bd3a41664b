"""What a comparison leaves: a JSON file of all figures, and the table and report that are made of it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console

from experiments.analysis import Comparison
from experiments.cli import run
from experiments.compare import KINDS, VARIATIONS, choose
from experiments.methods import METHODS
from experiments.pictures import scaling_methods
from experiments.report import read_results, write_report, write_results
from experiments.tables import Table, make_changes, make_learning_rates, make_summary
from tests.experiments.comparisons import METHOD, make_comparison, make_run, make_varied

NIGHTLY = pytest.mark.nightly

# Files


@pytest.mark.parametrize("make", [make_comparison, make_varied])
def test_results_are_read_back_as_they_were(make: Callable[[], Comparison], tmp_path: Path) -> None:
    comparison = make()
    write_results(tmp_path / "results.json", comparison)
    found, versions = read_results(tmp_path / "results.json")
    assert found == comparison
    assert versions["threads"] >= 1
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["summary"][1]["difference"] == {"mean": -1.0, "half_width": pytest.approx(2.4841, rel=1e-4)}


@pytest.mark.parametrize(
    ("diverged", "finite_epochs"), [(1, 1), (3, 0), *(pytest.param(*case, marks=NIGHTLY) for case in ((1, 0), (3, 1)))]
)
def test_divergence_shows_and_is_null_in_json(diverged: int, finite_epochs: int, tmp_path: Path) -> None:
    varied = make_varied()
    loss = [1.0] * finite_epochs + [math.nan] * (2 - finite_epochs)
    runs = [
        replace(entry, train_loss=loss, layer_scale=[[1.0, math.inf], [math.nan, 0.0]] if entry.layer_scale else [])
        if entry.seed < diverged
        else entry
        for entry in varied.results
    ]
    write_results(tmp_path / "results.json", replace(varied, results=runs))
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["summary"][0]["train_loss"] == {"mean": None, "half_width": None}
    assert next(entry for entry in content["runs"] if entry["seed"] == 0)["train_loss"][-1] is None
    report = write_report(tmp_path, [tmp_path / "results.json"])
    found, _ = read_results(tmp_path / "results.json")
    told = f"({diverged} of 3 diverged)"
    for table in (make_summary(found), make_learning_rates(found), make_changes(found, ["init"], ["bad"])):
        for row in table.rows:
            assert told in " ".join(row)
        assert table.to_markdown() in report.read_text().replace("each hidden layer times 0.1 to 10", "bad")
    assert make_summary(found).rows[0][3] == "nan"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nothing", "want a file that this version of `compare`"),
        ("{}", "want a file that this version of `compare`"),
        ("no such method", "want a file that this version of `compare`"),
        ("a run less", "which lacks runs or epochs"),
        ("no runs", "which lacks runs or epochs"),
        ("a run twice", "which lacks runs or epochs or has too many"),
        ("an epoch less", "which lacks runs or epochs or has too many"),
        ("a seed twice", "which lacks runs or epochs or has too many"),
        ("an unknown variation", "which lacks runs or epochs or has too many"),
    ],
)
def test_other_files_are_refused(change: str, message: str, tmp_path: Path) -> None:
    comparison = make_comparison()
    path = tmp_path / "results.json"
    write_results(path, comparison)
    content = json.loads(path.read_text())
    if change == "no such method":
        content["methods"]["none"] = content["methods"].pop("paper")
    elif change == "a run less":
        content["runs"].pop()
    elif change == "no runs":
        content["runs"] = []
        content["settings"]["seeds"] = []
    elif change == "a run twice":
        content["runs"].append(content["runs"][0])
    elif change == "an epoch less":
        content["runs"][0]["test_error"].pop()
    elif change == "a seed twice":
        content["settings"]["seeds"] = [0, 0, 1, 2]
    elif change == "an unknown variation":
        content["settings"]["variations"].append("lr x 7")
    path.write_text({"nothing": "", "{}": "{}"}.get(change, json.dumps(content)))
    with pytest.raises(ValueError, match=message):
        read_results(path)


# Table and report


def test_json_holds_what_the_table_shows(tmp_path: Path) -> None:
    comparison = make_comparison()
    write_results(tmp_path / "results.json", comparison)
    content = json.loads((tmp_path / "results.json").read_text())
    rows = make_summary(comparison).rows
    for row, brief, (label, lr, decay, loss, error, difference, step) in zip(
        content["summary"], make_summary(comparison, brief=True).rows, rows, strict=True
    ):
        assert (row["label"], f"{row['lr']:.3g}", f"{row['weight_decay']:.3g}") == (label, lr, decay)
        cells = (
            ("train_loss", ".4f", loss),
            ("test_error", ".2f", error),
            ("difference", "+.2f", difference),
            ("step_ms", ".3f", step),
        )
        for name, form, cell in cells:
            found = row[name]
            assert cell == (f"{found['mean']:{form}} ± {found['half_width']:{form.lstrip('+')}}" if found else "")
        assert brief == [label, lr, decay, f"{row['train_loss']['mean']:.4g}", error, difference, step.split(" ")[0]]
    assert content["settings"]["seeds"] == [0, 1, 2]
    assert content["versions"]["torch"] == version("torch")


@pytest.mark.parametrize("decay", [5e-4, 3.63e-5])
def test_the_summary_fits_a_terminal(decay: float) -> None:
    comparison = make_comparison()
    longest = {**METHOD, "recommended": METHODS["recommended"].tuned(0.0346, decay)}
    runs = [*comparison.results, *(make_run("recommended", seed, 11.0 - seed) for seed in range(3))]
    table = make_summary(replace(comparison, methods=longest, results=runs), brief=True)
    lines = on_terminal(table)
    assert len(lines) == 2 + 1 + 3 + 1  # heading, rule, methods, caption: nothing is folded
    for row in table.rows:
        assert all(cell in "\n".join(lines) for cell in row)


def test_a_long_name_is_folded_and_no_number() -> None:
    comparison = make_comparison()
    name = "paper+plain-head+frozen-norms+shape-decay+product"
    runs = [replace(entry, method=name) if entry.method == "paper" else entry for entry in comparison.results]
    runs = [replace(entry, train_loss=[1e30, 1e37]) for entry in runs]
    methods = {"sgd": METHOD["sgd"], name: METHODS[name].tuned(0.0346, 3.63e-5)}
    table = make_summary(replace(comparison, methods=methods, results=runs), brief=True)
    lines = on_terminal(table)
    assert len(lines) > 2 + 1 + 2 + 1
    for row in table.rows:
        assert all(cell in "\n".join(lines) for cell in row[1:])


def test_markdown_has_one_line_for_each_row_and_numbers_to_the_right() -> None:
    table = Table(("method", "test\nerror"), [["SGD", "1.5"], ["LARS", "2"]], "In percent.")
    lines = ["| method | test error |", "| --- | ---: |", "| SGD | 1.5 |", "| LARS | 2 |", "", "In percent.", ""]
    assert table.to_markdown() == "\n".join(lines)


def on_terminal(table: Table) -> list[str]:
    terminal = io.StringIO()
    Console(file=terminal, width=80).print(table.to_terminal())
    return [line for line in terminal.getvalue().splitlines() if not set(line) <= {" "}]


def test_the_report_has_a_section_for_what_was_varied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for what in ("curves", "learning_rates", "layer_scales"):
        monkeypatch.setattr(f"experiments.report.draw_{what}", lambda path, comparison: path.touch())
    varied = make_varied()
    for kinds in ((), *((kind,) for kind in KINDS), KINDS):
        chosen = choose(kinds)
        results = [entry for entry in varied.results if entry.variation in chosen]
        path = tmp_path / "results.json"
        write_results(path, replace(varied, settings=replace(varied.settings, variations=chosen), results=results))
        text = write_report(tmp_path / "-".join(("report", *kinds)), [path]).read_text()
        headings = {"lr": "### Learning rate", "init": "### Badly scaled", "width": "### Width"}
        assert {kind for kind, heading in headings.items() if heading in text} == set(kinds)
        pictures = {"curves.png", "layer-scales.png"} | ({"learning-rates.png"} if "lr" in kinds else set())
        folder = tmp_path / "-".join(("report", *kinds))
        assert {file.name for file in folder.iterdir()} == {"report.md", *pictures}
        assert all(f"]({picture})" in text for picture in pictures)


def test_only_methods_that_scale_layers_have_their_scales_drawn(tmp_path: Path) -> None:
    comparison = make_comparison()
    assert scaling_methods(comparison) == ["paper"]
    only = [entry for entry in comparison.results if entry.method == "sgd"]
    write_results(tmp_path / "results.json", replace(comparison, methods={"sgd": METHOD["sgd"]}, results=only))
    assert "Layer scales" not in write_report(tmp_path / "out", [tmp_path / "results.json"]).read_text()


def test_the_command_makes_report_and_pictures_again_from_the_json(compared: Path, tmp_path: Path) -> None:
    made = {file.name: file.read_bytes() for file in compared.iterdir()}
    assert sum(content.startswith(b"\x89PNG") for content in made.values()) == 3
    assert len(made) == 5
    assert run(["report", str(compared / "results.json"), "--out", str(tmp_path / "again")]) == 0
    again = {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}
    assert again == {name: content for name, content in made.items() if name != "results.json"}
    assert len(json.loads(made["results.json"])["runs"]) == 2 * len(VARIATIONS)


def test_a_report_has_a_section_for_each_file(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_results(file, make_comparison())
    text = write_report(tmp_path, [file, file]).read_text()
    assert text.count("## vgg7 on digits\n") == 2
    for name in ("1-curves.png", "2-curves.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["report", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")])
    assert "argument results: " in (error := capsys.readouterr().err)
    assert "none.json" in error
    assert not (tmp_path / "out").exists()
