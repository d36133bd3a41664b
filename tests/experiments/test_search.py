"""The search: equal budgets, reproducible, several workers, interrupted and killed at any time, and what it leaves."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("optuna")
pytest.importorskip("pytorch_optimizer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

import optuna
from optuna import Study
from optuna.trial import TrialState, create_trial
from rich.console import Console

from sasgd_fused.experiments.cli import run
from sasgd_fused.experiments.compare import Settings
from sasgd_fused.experiments.methods import METHODS, Tuned
from sasgd_fused.experiments.presets import PRESETS
from sasgd_fused.experiments.search import (
    DOMAIN,
    SAMPLERS,
    Measurement,
    SearchSettings,
    best,
    equal_budgets,
    finished,
    measure,
    open_studies,
    search,
)
from sasgd_fused.experiments.search_report import take_best, write_search_json
from tests.experiments.search_measures import killed_once, slow_valley, valley
from tests.helpers import cpu_only
from tests.processes import has_ended

pytestmark = [cpu_only("the experiments run there"), pytest.mark.usefixtures("one_thread", "quiet_optuna")]

QUIET = Console(quiet=True)


@pytest.fixture
def settings(tmp_path: Path) -> SearchSettings:
    (tmp_path / "word").mkdir()
    return SearchSettings(Settings(str(tmp_path / "word"), seeds=(100, 101)))


def spend(
    path: Path, settings: SearchSettings, trials: int, measure: Callable[..., Any] = valley, workers: int = 1
) -> dict[str, Study]:
    studies = open_studies(path, settings, ["sgd", "paper"])
    search(studies, settings, trials=trials, workers=workers, threads=1, console=QUIET, measure=measure)
    return studies


def spend_in_threads(
    path: Path, settings: SearchSettings, trials: int, measure: Callable[..., Any] = valley
) -> dict[str, Study]:
    """The same with a thread for a worker, which need not import torch first."""
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        return spend(path, settings, trials, measure)


def use_threads(patch: pytest.MonkeyPatch) -> None:
    pool = "sasgd_fused.experiments.search.ProcessPoolExecutor"
    patch.setattr(pool, lambda count, *_, **__: ThreadPoolExecutor(count))


def tried(studies: dict[str, Study]) -> dict[str, list[tuple[dict[str, Any], float | None]]]:
    return {name: [(trial.params, trial.value) for trial in finished(study)] for name, study in studies.items()}


# The budget


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_goes_on_gives_what_one_in_a_piece_gives(
    sampler: str, settings: SearchSettings, tmp_path: Path
) -> None:
    settings = SearchSettings(settings.runs, sampler, sampler_seed=5)
    trials = 13  # more than TPE draws at random
    whole = tried(spend_in_threads(tmp_path / "whole", settings, trials))
    spend_in_threads(tmp_path / "parts", settings, 4)
    assert tried(spend_in_threads(tmp_path / "parts", settings, trials)) == whole
    assert [len(entries) for entries in whole.values()] == [trials, trials]
    lrs = [params["lr"] for params, _ in whole["sgd"]]
    assert len(set(lrs)) == trials
    assert whole["sgd"][0][0] == whole["paper"][0][0]  # no method begins with luckier draws
    other = tried(spend_in_threads(tmp_path / "other", SearchSettings(settings.runs, sampler, sampler_seed=6), 1))
    assert other["sgd"][0] != whole["sgd"][0]


def test_workers_share_the_budget(settings: SearchSettings, tmp_path: Path) -> None:
    studies = spend(tmp_path / "journal", settings, 5, slow_valley, workers=2)
    assert len(list(Path(settings.runs.dataset).iterdir())) == 2  # each left its process id
    for study in studies.values():
        assert len(study.trials) == len(finished(study)) == 5
        assert len({trial.params["lr"] for trial in study.trials}) == 5


def test_the_trial_of_a_killed_worker_runs_again(settings: SearchSettings, tmp_path: Path) -> None:
    studies = spend(tmp_path / "killed", settings, 3, killed_once)
    lost = [trial for study in studies.values() for trial in study.trials if trial.state == TrialState.FAIL]
    assert len(lost) == 1
    assert lost[0].value is None
    assert tried(studies) == tried(spend_in_threads(tmp_path / "whole", settings, 3))


def test_a_lost_trial_runs_again_though_the_sampler_would_draw_otherwise_now(
    settings: SearchSettings, tmp_path: Path
) -> None:
    study = open_studies(tmp_path / "journal", settings, ["sgd"])["sgd"]
    lost, other = study.ask(DOMAIN), study.ask(DOMAIN)
    study.tell(other, 1.0)
    again = spend_in_threads(tmp_path / "journal", settings, 2)["sgd"]
    assert [trial.params for trial in finished(again)] == [other.params, lost.params]


def test_workers_that_are_always_killed_end_the_search(settings: SearchSettings, tmp_path: Path) -> None:
    def die(*_: object) -> Measurement:
        raise BrokenProcessPool  # as the pool has it

    with pytest.raises(RuntimeError, match=r"4 workers were killed, the last one by \{'lr': "):
        spend_in_threads(tmp_path / "journal", settings, 3, die)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_search_that_was_killed_goes_on_and_leaves_no_worker(settings: SearchSettings, tmp_path: Path) -> None:
    word = Path(settings.runs.dataset)
    whole = tried(spend_in_threads(tmp_path / "whole", settings, 3))
    code = f"""
from pathlib import Path
from sasgd_fused.experiments.compare import Settings
from sasgd_fused.experiments.search import SearchSettings
from tests.experiments.search_measures import stuck_in_the_third
from tests.experiments.test_search import spend
if __name__ == "__main__":
    settings = SearchSettings(Settings({settings.runs.dataset!r}, seeds=(100, 101)))
    spend(Path({str(tmp_path / "killed")!r}), settings, 3, stuck_in_the_third)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as command:
        end = time.monotonic() + 60
        while not (word / "stuck").exists():
            assert command.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        command.kill()
    assert has_ended(int((word / "stuck").read_text()))
    studies = spend_in_threads(tmp_path / "killed", settings, 3)
    assert tried(studies) == whole
    assert sum(trial.state == TrialState.FAIL for study in studies.values() for trial in study.trials) == 1


def test_other_settings_are_another_search(settings: SearchSettings, tmp_path: Path) -> None:
    open_studies(tmp_path / "journal", settings, ["sgd"])
    open_studies(tmp_path / "journal", settings, ["sgd", "paper"])
    for other, message in (
        (SearchSettings(settings.runs, "biased-random"), "got biased-random for sampler, but .* ran with tpe"),
        (
            SearchSettings(Settings(settings.runs.dataset, seeds=(100, 102))),
            r"got \[100, 102\] for seeds, but .*\[100, 101\]",
        ),
        (
            SearchSettings(dataclasses.replace(settings.runs, model="resnet")),
            "got resnet for model, but .* ran with vgg7",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            open_studies(tmp_path / "journal", other, ["paper"])


# What a trial is, and which is best


def test_a_trial_trains_with_its_settings_once_for_each_seed() -> None:
    runs = Settings("digits-tuning", seeds=(7, 8), epochs=1)
    still = measure(runs, "paper", {"lr": 0.0, "weight_decay": 0.0})
    assert len(still.test_error) == len(still.train_loss) == len(still.seconds) == 2
    learnt = measure(runs, "paper", {"lr": 0.02, "weight_decay": 0.0})
    assert all(low < high for low, high in zip(learnt.test_error, still.test_error, strict=True))
    one = dataclasses.replace(runs, seeds=(7,))
    assert measure(one, "paper", {"lr": 0.02, "weight_decay": 0.5}).train_loss != learnt.train_loss[:1]
    assert measure(one, "paper", {"lr": 1e3, "weight_decay": 0.5}).train_loss == [None]


def study_of(*trials: tuple[float, list[float | None]]) -> Study:
    study = optuna.create_study()
    for number, (error, losses) in enumerate(trials):
        params = {"lr": 0.1 + number, "weight_decay": 0.01}
        attributes = {"test_error": [error], "train_loss": losses}
        study.add_trial(create_trial(params=params, distributions=DOMAIN, value=error, user_attrs=attributes))
    return study


def test_the_lowest_error_is_best_and_then_the_lowest_loss() -> None:
    trials = study_of((3.0, [0.1]), (2.0, [None]), (2.0, [0.5]), (2.0, [0.4]), (2.5, [0.0])).trials
    assert best(trials).number == 3
    assert best(trials[:2]).number == 1


def test_budgets_are_made_equal_by_the_first_trials_of_each(settings: SearchSettings, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    studies = spend_in_threads(path, settings, 3)
    more = open_studies(path, settings, ["sgd", "adamw"])
    search({"sgd": more["sgd"]}, settings, trials=5, workers=1, threads=1, console=QUIET, measure=valley)
    assert len(finished(more["sgd"])) == 5
    trials = equal_budgets(path)  # adamw has been opened, but not begun
    assert list(trials) == ["sgd", "paper"]
    for name, of_method in trials.items():
        assert [trial.params for trial in of_method] == [trial.params for trial in finished(studies[name])[:3]]
    assert equal_budgets(tmp_path / "empty") == {}


def test_a_search_of_the_version_before_variations_goes_on(settings: SearchSettings, tmp_path: Path) -> None:
    study = open_studies(tmp_path / "journal", settings, ["sgd"])["sgd"]
    kept = study.user_attrs["settings"]
    del kept["runs"]["variations"]
    study.set_user_attr("settings", kept)
    assert list(open_studies(tmp_path / "journal", settings, ["sgd"])) == ["sgd"]
    kept["runs"]["of a later version"] = 1
    study.set_user_attr("settings", kept)
    with pytest.raises(ValueError, match=r"got None for of a later version, but the trials in .* ran with 1"):
        open_studies(tmp_path / "journal", settings, ["sgd"])


# The file that it leaves


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


def test_the_command_tunes_goes_on_and_feeds_the_comparison(tmp_path: Path) -> None:
    out = tmp_path / "new" / "search"
    options = ["--methods", "sgd", "paper", "--epochs", "1", "--seeds", "100", "--sampler", "biased-random"]
    command = [sys.executable, "-m", "sasgd_fused.experiments", "search", *options, "--out", str(out)]
    done = subprocess.run([*command, "--trials", "2"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in ("sgd", "paper"):
        assert METHODS[name].label in done.stdout
        assert f"{name} 2/2" in done.stdout
    content = json.loads((out / "search.json").read_text())
    assert content["settings"]["sampler"] == "biased-random"
    for name, trials in content["trials"].items():
        assert content["best"][name]["mean_test_error"] == min(trial["mean_test_error"] for trial in trials)
        assert len(trials) == 2

    assert run(["search", *options, "--trials", "1", "--out", str(out)]) == 0  # the budget is spent: no run
    assert json.loads((out / "search.json").read_text())["trials"] == content["trials"]

    compared = tmp_path / "compare"
    options = ["--settings", str(out / "search.json"), "--lr", "paper=0.5", "--methods", "sgd", "paper"]
    assert run(["compare", *options, "--seeds", "0", "--epochs", "1", "--out", str(compared)]) == 0
    sgd, paper = json.loads((compared / "results.json").read_text())["summary"]
    assert (sgd["lr"], sgd["weight_decay"]) == tuple(content["best"]["sgd"][key] for key in ("lr", "weight_decay"))
    assert (paper["lr"], paper["weight_decay"]) == (0.5, content["best"]["paper"]["weight_decay"])


@pytest.mark.parametrize("name", PRESETS)
def test_a_search_has_the_preset_on_images_that_it_does_not_test_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[tuple[dict[str, Study], SearchSettings]] = []

    def stop(studies: dict[str, Study], settings: SearchSettings, **_: Any) -> None:
        searched.append((studies, settings))
        raise KeyboardInterrupt

    monkeypatch.setattr("sasgd_fused.experiments.search_cli.search", stop)
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


def test_the_comparison_takes_the_search_of_its_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_threads(monkeypatch)
    options = ["--preset", "deep-plain", "--epochs", "1", "--methods", "sgd", "--out", str(tmp_path)]
    assert run(["search", *options, "--seeds", "100", "--trials", "1"]) == 0
    runs = json.loads((tmp_path / "search.json").read_text())["settings"]["runs"]
    assert (runs["model"], runs["dataset"], runs["epochs"]) == ("deep-plain", "noisy-digits-tuning", 1)
    with pytest.raises(SystemExit):
        run(["compare", "--preset", "resnet", "--methods", "sgd", "--settings", str(tmp_path / "search.json")])
    assert "with model deep-plain, want resnet, as the comparison has" in capsys.readouterr().err
    assert run(["compare", *options, "--seeds", "0", "--settings", str(tmp_path / "search.json")]) == 0


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

    monkeypatch.setattr("sasgd_fused.experiments.search_cli.search", interrupt)
    assert run(["search", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().out == "Interrupted. The same command goes on.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "mnist"], "argument --preset: invalid choice: 'mnist'"),
        (["--methods", "adam"], "argument --methods: invalid choice: 'adam'"),
        (["--device", "no"], "argument --device: "),
        (["--dataset", "digits"], "unrecognized arguments: --dataset digits"),
        (["--sampler", "grid"], "argument --sampler: invalid choice: 'grid'"),
        (["--trials", "0"], "argument --trials: got '0', want an integer from 1 on"),
        (["--seeds", "100", "101", "100"], "argument --seeds: got 100 twice, want different ones"),
        (["--workers", "0"], "argument --workers: got '0', want an integer from 1 on"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(["search", *arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_search_with_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_studies(tmp_path / "search.journal", SearchSettings(Settings("digits-tuning", seeds=(1,))), ["sgd"])
    with pytest.raises(SystemExit):
        run(["search", "--methods", "sgd", "--seeds", "2", "--out", str(tmp_path)])
    assert "argument --out: got [2] for seeds, but the trials in" in capsys.readouterr().err
