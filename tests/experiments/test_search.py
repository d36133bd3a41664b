"""The search: equal budgets, reproducible, several workers, interrupted and killed at any time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from optuna import Study
from optuna.trial import TrialState
from rich.console import Console

from experiments.compare import Settings
from experiments.search import (
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
from tests.experiments.search_measures import killed_once, slow_valley, valley
from tests.experiments.studies import study_of, use_threads
from tests.processes import has_ended

pytestmark = pytest.mark.usefixtures("quiet_optuna")

ROOT = Path(__file__).resolve().parents[2]
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
    path: Path, settings: SearchSettings, trials: int, measure: Callable[..., Any] = valley, workers: int = 1
) -> dict[str, Study]:
    """The same with a thread for a worker, which need not import torch first."""
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        return spend(path, settings, trials, measure, workers)


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


def test_threads_share_the_budget(settings: SearchSettings, tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def wait_for_the_other(*arguments: Any) -> Measurement:
        both.wait(timeout=300)
        return valley(*arguments)

    studies = spend_in_threads(tmp_path / "journal", settings, 5, wait_for_the_other, workers=2)
    for study in studies.values():
        assert len(study.trials) == len(finished(study)) == 5
        assert len({trial.params["lr"] for trial in study.trials}) == 5


def test_workers_share_the_budget(settings: SearchSettings, tmp_path: Path) -> None:
    studies = spend(tmp_path / "journal", settings, 5, slow_valley, workers=2)
    assert len(list(Path(settings.runs.dataset).iterdir())) == 2  # each left its process id
    for study in studies.values():
        assert len(study.trials) == len(finished(study)) == 5
        assert len({trial.params["lr"] for trial in study.trials}) == 5


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_the_trial_of_a_killed_worker_runs_again(killed: bool, settings: SearchSettings, tmp_path: Path) -> None:
    calls: list[None] = []

    def broken_once(*arguments: Any) -> Measurement:
        calls.append(None)
        if len(calls) == 3:
            raise BrokenProcessPool  # as the pool has it
        return valley(*arguments)

    if killed:
        studies = spend(tmp_path / "killed", settings, 3, killed_once)
    else:
        studies = spend_in_threads(tmp_path / "killed", settings, 3, broken_once)
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
        raise BrokenProcessPool

    with pytest.raises(RuntimeError, match=r"4 workers were killed, the last one by \{'lr': "):
        spend_in_threads(tmp_path / "journal", settings, 3, die)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_search_that_was_killed_goes_on_and_leaves_no_worker(settings: SearchSettings, tmp_path: Path) -> None:
    word = Path(settings.runs.dataset)
    whole = tried(spend_in_threads(tmp_path / "whole", settings, 3))
    code = f"""
from pathlib import Path
from experiments.compare import Settings
from experiments.search import SearchSettings
from tests.experiments.search_measures import stuck_in_the_third
from tests.experiments.test_search import spend
if __name__ == "__main__":
    settings = SearchSettings(Settings({settings.runs.dataset!r}, seeds=(100, 101)))
    spend(Path({str(tmp_path / "killed")!r}), settings, 3, stuck_in_the_third)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as command:
        end = time.monotonic() + 600
        while not (word / "stuck").exists():
            assert command.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        command.kill()
    assert has_ended(int((word / "stuck").read_text()), seconds=60)
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
    assert {name: len(values) for name, values in still.items()} == {"test_error": 2, "train_loss": 2, "seconds": 2}
    learnt = measure(runs, "paper", {"lr": 0.02, "weight_decay": 0.0})
    assert all(low < high for low, high in zip(learnt["test_error"], still["test_error"], strict=True))
    one = dataclasses.replace(runs, seeds=(7,))
    assert measure(one, "paper", {"lr": 0.02, "weight_decay": 0.5})["train_loss"] != learnt["train_loss"][:1]
    assert measure(one, "paper", {"lr": 1e3, "weight_decay": 0.5})["train_loss"] == [None]


def test_the_lowest_error_is_best_and_then_the_lowest_loss() -> None:
    trials = study_of((3.0, [0.1]), (2.0, [None]), (2.0, [0.5]), (2.0, [0.4]), (2.5, [0.0])).trials
    assert best(trials).number == 3
    assert best(trials[:2]).number == 1


def test_budgets_are_made_equal_by_the_first_trials_of_each(
    settings: SearchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    studies = spend_in_threads(path, settings, 3)
    more = open_studies(path, settings, ["sgd", "adamw"])
    use_threads(monkeypatch)
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
