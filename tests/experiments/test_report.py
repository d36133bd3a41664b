"""What a comparison says: intervals, paired differences, tables, pictures, and the report made again from its JSON."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("pytorch_optimizer")
pytest.importorskip("rich")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")

from rich.console import Console

from sasgd_fused.experiments.analysis import (
    Comparison,
    change,
    count_near_best,
    epochs_to,
    learning_rates,
    summarise,
    thresholds,
)
from sasgd_fused.experiments.cli import run
from sasgd_fused.experiments.compare import Settings
from sasgd_fused.experiments.estimates import Estimate
from sasgd_fused.experiments.methods import METHODS
from sasgd_fused.experiments.pictures import scaling_methods
from sasgd_fused.experiments.report import write_report
from sasgd_fused.experiments.results import read_results, write_results
from sasgd_fused.experiments.tables import make_changes, make_learning_rates, make_speeds, make_summary
from sasgd_fused.experiments.tabular import Table
from sasgd_fused.experiments.train import RunResult
from sasgd_fused.experiments.variations import KINDS, TUNED, VARIATIONS, choose
from tests.helpers import cpu_only

pytestmark = cpu_only("the experiments run there")

METHOD = {"sgd": METHODS["sgd"].tuned(0.5, 1e-3), "paper": METHODS["paper"].tuned(0.02, 3.63e-5)}


def make_run(method: str, seed: int, error: float, variation: str = TUNED) -> RunResult:
    scales = [[2.0, 4.0], [1.0, 8.0]] if method == "paper" else []
    return RunResult(method, seed, variation, [2.0, 0.25 + seed], [50.0, error], scales, 0.5, 1.0)


@pytest.fixture
def comparison() -> Comparison:
    """Three seeds, of which the last was run first."""
    settings = Settings(seeds=(0, 1, 2), epochs=2)
    errors = {"sgd": (10.0, 12.0, 14.0), "paper": (9.0, 12.0, 12.0)}
    runs = [make_run(name, seed, values[seed]) for seed in (2, 0, 1) for name, values in errors.items()]
    return Comparison(settings, METHOD, runs)


@pytest.fixture
def varied(comparison: Comparison) -> Comparison:
    """With every variation; what each adds to the error depends on method and seed."""
    variations = choose(KINDS)
    runs = list(comparison.results)
    for place, variation in enumerate(variations[1:], 1):
        for base in comparison.results:
            added = place * (1 + base.seed) if base.method == "sgd" else 0.4 * place
            runs.append(make_run(base.method, base.seed, base.test_error[-1] + added, variation))
    return replace(comparison, settings=replace(comparison.settings, variations=variations), results=runs)


# Numbers


def test_the_interval_is_students() -> None:
    estimate = Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert estimate.mean == 3.0
    assert estimate.half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)  # t for 4 degrees of freedom
    assert estimate.format(2) == "3.00 ± 1.96"
    assert Estimate.of([-1.0, -3.0]).format(1, "+") == "-2.0 ± 12.7"
    assert Estimate.of([1.0, 1.0]).format(1, "+") == "+1.0 ± 0.0"


def test_what_is_not_finite_has_no_interval() -> None:
    for values in ([1.0, math.nan], [1.0, math.inf]):
        assert Estimate.of(values).format(2) == "nan"
    assert Estimate.of([7.0]).format(1) == "7.0"


def test_differences_are_paired_by_seed(comparison: Comparison) -> None:
    sgd, paper = summarise(comparison)
    assert (sgd.test_error.mean, paper.test_error.mean) == (12.0, 11.0)
    assert sgd.difference is None
    assert paper.difference == Estimate.of([-1.0, 0.0, -2.0])
    assert paper.difference.half_width < paper.test_error.half_width
    assert sgd.train_loss.mean == 1.25
    assert (sgd.runs, sgd.lr, sgd.weight_decay, sgd.step_ms.mean) == (3, 0.5, 1e-3, 0.5)


def test_epochs_are_counted_until_the_error_is_reached_first() -> None:
    assert epochs_to([9.0, 5.0, 7.0, 4.0], 5.0) == 2
    assert epochs_to([9.0, 5.0], 4.9) == math.inf
    assert epochs_to([math.nan, 4.0], 5.0) == 2
    equal = [100 * wrong / 899 for wrong in (33,) * 5]
    assert math.fsum(equal) / 5 < equal[0]  # rounded
    assert epochs_to(equal, math.fsum(equal) / 5) == 1


def test_epochs_are_those_of_the_median_seed(comparison: Comparison) -> None:
    assert thresholds(comparison) == [12.0, 13.0, 15.0, 22.0]
    table = make_speeds(comparison)
    assert table.heading == ("method", "to 12.00 %", "to 13.00 %", "to 15.00 %", "to 22.00 %")
    assert table.rows == [["SGD", "2", "2", "2", "2"], ["amended, paper", "2", "2", "2", "2"]]
    runs = [replace(entry, test_error=[50.0, 13.0]) if entry.seed else entry for entry in comparison.results]
    # SGD ends at 12 with seed 0's 10: two of three seeds do not get there.
    table = make_speeds(replace(comparison, results=runs))
    assert table.rows[0] == ["SGD", "over 2", "2", "2", "2"]


def test_learning_rates_are_in_order_and_count_near_their_own_best(varied: Comparison) -> None:
    found = learning_rates(varied, "sgd")
    assert list(found) == pytest.approx([0.1, 10**-0.5, 1.0, 10**0.5, 10.0])
    assert [error.mean for error in found.values()] == pytest.approx([14.0, 16.0, 12.0, 18.0, 20.0])
    assert count_near_best(found) == 1
    # 0.4, 0.8, 0, 1.2 and 1.6 points above its best
    assert count_near_best(learning_rates(varied, "paper")) == 3
    table = make_learning_rates(varied)
    assert table.heading == ("method", "0.1 lr", "0.32 lr", "1 lr", "3.2 lr", "10 lr", "within 1 point of its best")
    cells = [f"{mean} ± 4.3" for mean in (11.4, 11.8, 11.0, 12.2, 12.6)]
    assert table.rows[1] == ["amended, paper", *cells, "3 of 5"]


def test_the_effect_of_a_variation_is_paired_with_the_tuned_run(varied: Comparison) -> None:
    place = varied.settings.variations.index("init")
    assert change(varied, "sgd", "init") == Estimate.of([place, 2.0 * place, 3.0 * place])
    assert change(varied, "paper", "init").half_width == pytest.approx(0, abs=1e-6)
    row = make_changes(varied, ["init"], ["bad"]).rows[0]
    assert row[:3] == ["SGD", "12.00 ± 4.97", f"{12 + 2 * place:.2f} ± 17.39"]
    assert row[3].startswith(f"+{2 * place:.2f} ± ")


# Files


@pytest.mark.parametrize("name", ["comparison", "varied"])
def test_results_are_read_back_as_they_were(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    comparison: Comparison = request.getfixturevalue(name)
    write_results(tmp_path / "results.json", comparison)
    found, versions = read_results(tmp_path / "results.json")
    assert found == comparison
    assert versions["threads"] >= 1
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["summary"][1]["difference"] == {"mean": -1.0, "half_width": pytest.approx(2.4841, rel=1e-4)}


@pytest.mark.parametrize("diverged", [1, 3])
@pytest.mark.parametrize("finite_epochs", [0, 1])
def test_divergence_shows_and_is_null_in_json(
    diverged: int, finite_epochs: int, varied: Comparison, tmp_path: Path
) -> None:
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
def test_other_files_are_refused(change: str, message: str, comparison: Comparison, tmp_path: Path) -> None:
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


def test_json_holds_what_the_table_shows(comparison: Comparison, tmp_path: Path) -> None:
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
    assert content["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("decay", [5e-4, 3.63e-5])
def test_the_summary_fits_a_terminal(decay: float, comparison: Comparison) -> None:
    longest = {**METHOD, "recommended": METHODS["recommended"].tuned(0.0346, decay)}
    runs = [*comparison.results, *(make_run("recommended", seed, 11.0 - seed) for seed in range(3))]
    table = make_summary(replace(comparison, methods=longest, results=runs), brief=True)
    lines = on_terminal(table)
    assert len(lines) == 2 + 1 + 3 + 1  # heading, rule, methods, caption: nothing is folded
    for row in table.rows:
        assert all(cell in "\n".join(lines) for cell in row)


def test_a_long_name_is_folded_and_no_number(comparison: Comparison) -> None:
    name = "paper+plain-head+frozen-norms+shape-decay+product"
    runs = [replace(entry, method=name) if entry.method == "paper" else entry for entry in comparison.results]
    runs = [replace(entry, train_loss=[1e30, 1e37]) for entry in runs]
    methods = {"sgd": METHOD["sgd"], name: METHODS[name].tuned(0.0346, 3.63e-5)}
    table = make_summary(replace(comparison, methods=methods, results=runs), brief=True)
    lines = on_terminal(table)
    assert len(lines) > 2 + 1 + 2 + 1
    for row in table.rows:
        assert all(cell in "\n".join(lines) for cell in row[1:])


def on_terminal(table: Table) -> list[str]:
    terminal = io.StringIO()
    Console(file=terminal, width=80).print(table.to_terminal())
    return [line for line in terminal.getvalue().splitlines() if not set(line) <= {" "}]


def test_the_report_has_a_section_for_what_was_varied(
    comparison: Comparison, varied: Comparison, tmp_path: Path
) -> None:
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
        for picture in pictures:
            assert f"]({picture})" in text
            assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_only_methods_that_scale_layers_have_their_scales_drawn(comparison: Comparison, tmp_path: Path) -> None:
    assert scaling_methods(comparison) == ["paper"]
    only = [entry for entry in comparison.results if entry.method == "sgd"]
    write_results(tmp_path / "results.json", replace(comparison, methods={"sgd": METHOD["sgd"]}, results=only))
    assert "Layer scales" not in write_report(tmp_path / "out", [tmp_path / "results.json"]).read_text()


def test_the_command_makes_report_and_pictures_again_from_the_json(tmp_path: Path) -> None:
    first = tmp_path / "first"
    options = ["--methods", "sgd", "recommended", "--vary", *KINDS, "--seeds", "0", "--epochs", "1"]
    assert run(["compare", "--preset", "digits", *options, "--out", str(first)]) == 0
    made = {file.name: file.read_bytes() for file in first.iterdir()}
    assert len(made) == 5
    assert run(["report", str(first / "results.json"), "--out", str(tmp_path / "again")]) == 0
    again = {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}
    assert again == {name: content for name, content in made.items() if name != "results.json"}
    assert len(json.loads(made["results.json"])["runs"]) == 2 * len(VARIATIONS)

    both = [str(first / "results.json")] * 2
    assert run(["report", *both, "--out", str(tmp_path / "both")]) == 0
    text = (tmp_path / "both" / "report.md").read_text()
    assert text.count("## vgg7 on digits\n") == 2
    assert "](1-curves.png)" in text and "](2-curves.png)" in text


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["report", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")])
    assert "argument results: " in (error := capsys.readouterr().err)
    assert "none.json" in error
    assert not (tmp_path / "out").exists()
