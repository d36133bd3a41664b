"""The command `search`, and the file from which a comparison takes its rates."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study

from experiments.cli import run
from experiments.compare import Settings
from experiments.methods import METHODS, Tuned
from experiments.presets import PRESETS
from experiments.search import SearchSettings, finished, open_studies
from experiments.search_report import take_best, write_search_json
from tests.experiments.studies import study_of, use_threads

pytestmark = pytest.mark.usefixtures("quiet_optuna")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    studies = {"sgd": study_of((3.0, [0.1]), (2.0, [0.2])), "paper": study_of((4.0, [None]), (5.0, [0.5]))}
    path = tmp_path / "search.json"
    trials = {name: finished(study) for name, study in studies.items()}
    write_search_json(path, SearchSettings(Settings("digits-tuning", seeds=(100, 101))), trials)
    return path


def test_json_holds_every_trial_and_the_best(tuned: Path) -> None:
    content = json.loads(tuned.read_text())
    assert [trial["lr"] for trial in content["trials"]["sgd"]] == [0.1, 1.1]
    assert content["best"]["sgd"] == content["trials"]["sgd"][1]
    assert content["trials"]["paper"][0]["train_loss"] == [None]
    assert content["versions"]["optuna"] == optuna.__version__
    assert content["settings"]["domain"]["lr"]["attributes"]["log"] is True


def test_the_best_settings_are_taken(tuned: Path) -> None:
    methods = take_best(tuned, ["paper", "sgd"], Settings("digits", seeds=(0, 1)))
    assert list(methods) == ["paper", "sgd"]
    assert methods["sgd"] == Tuned(METHODS["sgd"], 1.1, 0.01, "search, 2 trials")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "sgd", "recommended"], "with sgd, paper, want one that has recommended too"),
        (["--methods", "sgd", "--epochs", "7"], "with epochs 30, want 7, as the comparison has"),
        (["--methods", "sgd", "--dataset", "digits-tuning"], "which was tuned by the error on digits-tuning"),
        (["--methods", "sgd", "--seeds", "3", "101"], "which was tuned on seed 101: want other seeds to compare on"),
        (["--methods", "sgd", "--preset", "resnet"], "on digits-tuning, want one on noisy-digits-tuning"),
        (
            ["--methods", "sgd", "--preset", "noisy-digits"],
            "on digits-tuning, want one on noisy-digits-tuning, to compare on",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    arguments: list[str], message: str, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(["compare", "--settings", str(tuned), *arguments, "--out", str(tmp_path / "out")])
    assert f"argument --settings: got {tuned}" in (error := capsys.readouterr().err)
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"best": {"sgd": {"lr": "fast"}}}', '{"best": {"sgd": null}}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="want a file that `search` has written"):
        take_best(path, ["sgd"], Settings(seeds=(0,)))


# Command line


def test_the_command_tunes_goes_on_and_feeds_the_comparison(
    small_networks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_threads(monkeypatch)
    out = tmp_path / "new" / "search"
    options = ["--preset", "deep-plain", "--methods", "sgd", "paper", "--epochs", "1"]
    tuning = ["--seeds", "100", "--sampler", "biased-random"]
    assert run(["search", *options, *tuning, "--trials", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for name in ("sgd", "paper"):
        assert METHODS[name].label in shown
        assert f"{name} 2/2" in shown
    content = json.loads((out / "search.json").read_text())
    runs = content["settings"]["runs"]
    assert (runs["model"], runs["dataset"], runs["epochs"]) == ("deep-plain", "noisy-digits-tuning", 1)
    assert content["settings"]["sampler"] == "biased-random"
    for name, trials in content["trials"].items():
        assert content["best"][name]["mean_test_error"] == min(trial["mean_test_error"] for trial in trials)
        assert len(trials) == 2

    assert run(["search", *options, *tuning, "--trials", "1", "--out", str(out)]) == 0  # the budget is spent: no run
    assert json.loads((out / "search.json").read_text())["trials"] == content["trials"]

    compared = tmp_path / "compare"
    settings = ["--settings", str(out / "search.json")]
    assert run(["compare", *options, *settings, "--lr", "paper=0.5", "--seeds", "0", "--out", str(compared)]) == 0
    sgd, paper = json.loads((compared / "results.json").read_text())["summary"]
    assert (sgd["lr"], sgd["weight_decay"]) == tuple(content["best"]["sgd"][key] for key in ("lr", "weight_decay"))
    assert (paper["lr"], paper["weight_decay"]) == (0.5, content["best"]["paper"]["weight_decay"])

    with pytest.raises(SystemExit):
        run(["compare", "--preset", "resnet", "--methods", "sgd", *settings])
    assert "with model deep-plain, want resnet, as the comparison has" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.nightly)])
def test_a_search_ends_well_in_processes_of_its_own(workers: str, tmp_path: Path) -> None:
    options = ["--methods", "sgd", "--epochs", "1", "--seeds", "100", "--trials", workers, "--workers", workers]
    command = [sys.executable, "-m", "experiments", "search", *options, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"sgd {workers}/{workers}" in done.stdout
    assert len(json.loads((tmp_path / "search.json").read_text())["trials"]["sgd"]) == int(workers)


@pytest.mark.parametrize("name", PRESETS)
def test_a_search_has_the_preset_on_images_that_it_does_not_test_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[tuple[dict[str, Study], SearchSettings]] = []

    def stop(studies: dict[str, Study], settings: SearchSettings, **_: Any) -> None:
        searched.append((studies, settings))
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.cli.search", stop)
    assert run(["search", "--preset", name, "--seeds", "105", "--out", str(tmp_path / "as it is")]) == 130
    assert (
        run(["search", "--preset", name, "--epochs", "7", "--methods", "lars", "--out", str(tmp_path / "other")]) == 130
    )
    runs = PRESETS[name].settings
    tuning = dataclasses.replace(runs, dataset=f"{runs.dataset}-tuning", seeds=(105,))
    assert [settings.runs for _, settings in searched] == [
        tuning,
        dataclasses.replace(tuning, seeds=(100, 101, 102), epochs=7),
    ]
    assert [list(studies) for studies, _ in searched] == [list(PRESETS[name].methods), ["lars"]]


def test_a_missing_archive_is_told_by_the_folder_to_put_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_threads(monkeypatch)
    folder = tmp_path / "archives"
    with pytest.raises(SystemExit) as stopped:
        run(["search", "--preset", "paper-cifar100", "--root", str(folder), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert f"argument --root: {folder / 'cifar-100-python.tar.gz'} is missing" in capsys.readouterr().err


def test_an_interruption_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.cli.search", interrupt)
    assert run(["search", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().out == "Interrupted. The same command goes on.\n"


def test_a_search_with_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_studies(tmp_path / "search.journal", SearchSettings(Settings("digits-tuning", seeds=(1,))), ["sgd"])
    with pytest.raises(SystemExit):
        run(["search", "--methods", "sgd", "--seeds", "2", "--out", str(tmp_path)])
    assert "argument --out: got [2] for seeds, but the trials in" in capsys.readouterr().err
