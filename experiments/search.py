"""The search for learning rate and weight decay: the same budget, domain and sampler for every method."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
import torch
from optuna import Study, Trial
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from experiments.biased_random import BiasedRandomSampler
from experiments.compare import TUNED, Settings, compare
from experiments.data import ROOT
from experiments.methods import METHODS

# One domain for all methods, wide enough for the best of each: what a narrow one leaves out, somebody knew before.
DOMAIN: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 10.0, log=True),
    "weight_decay": FloatDistribution(1e-5, 1.0, log=True),
}

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "biased-random": BiasedRandomSampler,
}

MOST_DEATHS = 3  # of workers in one search, before it is taken for hopeless


@dataclass(frozen=True)
class SearchSettings:
    """What all trials of a search share, and what a search must be continued with.

    Attributes:
        runs: data set, model, epochs and so on; a trial is one run for each of its seeds.
        sampler: key in `SAMPLERS`.
        sampler_seed: every method has the same.
    """

    runs: Settings
    sampler: str = "tpe"
    sampler_seed: int = 0


Measurement = dict[str, list[Any]]  # test_error, train_loss and seconds, one entry for each seed


def measure(settings: Settings, name: str, params: Mapping[str, float], root: Path = ROOT) -> Measurement:
    """Trains with one method and the learning rate and weight decay given, once for each seed.

    Returns:
        Errors in percent after the last epoch, losses in it, None where they are not finite, and times of the runs.

    Raises:
        ArchiveError: the archive of the data set is missing or damaged.
    """
    method = METHODS[name].tuned(params["lr"], params["weight_decay"])
    runs = compare(settings, {name: method}, Console(quiet=True), root=root)
    losses = [run.train_loss[-1] for run in runs]
    return {
        "test_error": [run.test_error[-1] for run in runs],
        "train_loss": [loss if math.isfinite(loss) else None for loss in losses],
        "seconds": [run.seconds for run in runs],
    }


def open_studies(path: Path, settings: SearchSettings, methods: Sequence[str]) -> dict[str, Study]:
    """Opens the study of each method in a journal on disk, or begins it.

    Trials that were running when an earlier search ended are counted as failed, and run again first.

    Raises:
        ValueError: the journal's trials ran with other settings.
    """
    storage = _open_storage(path)
    studies = {}
    for name in methods:
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        # As JSON has it, which knows no tuples.
        wanted = json.loads(json.dumps({**dataclasses.asdict(settings), "domain": str(DOMAIN)}))
        kept = study.user_attrs.get("settings", wanted)
        kept["runs"].setdefault("variations", [TUNED])  # which an earlier version did not have
        ours, theirs = ({**entry, **entry["runs"], "runs": None} for entry in (wanted, kept))
        for key in dict.fromkeys((*ours, *theirs)):
            if ours.get(key) != theirs.get(key):
                raise ValueError(f"got {ours.get(key)} for {key}, but the trials in {path} ran with {theirs.get(key)}")
        study.set_user_attr("settings", wanted)
        studies[name] = study
    for study in studies.values():
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            _run_again(study, trial)
    return studies


def search(
    studies: Mapping[str, Study],
    settings: SearchSettings,
    *,
    trials: int,
    workers: int,
    threads: int,
    console: Console,
    measure: Callable[[Settings, str, Mapping[str, float]], Measurement] = measure,
) -> None:
    """Runs trials until every study has its number of them.

    This process alone draws settings and writes the journal; workers only train. A study gets its next trial from a
    sampler that is new each time and seeded by the count of trials before. So a search with one worker gives the same
    trials whether it was interrupted or not; with several, what a sampler knows also depends on who finishes first.

    Args:
        studies: from `open_studies`, by method.
        settings: those of the studies.
        trials: finished trials that each study shall have.
        workers: processes, each with one trial at a time.
        threads: of torch, in each worker.
        console: where every trial gets a line.
        measure: runs a trial in a worker, which imports it by its name.

    Raises:
        RuntimeError: more than `MOST_DEATHS` workers were killed.
    """
    deaths = 0
    with ExitStack() as pools:

        def start_worker() -> ProcessPoolExecutor:
            # A pool for each, since a pool breaks as a whole when one of its processes is killed.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, context, initializer=_prepare_worker, initargs=(threads,))
            pools.callback(pool.shutdown, cancel_futures=True)
            return pool

        idle = [start_worker() for _ in range(workers)]
        running: dict[Future[Measurement], tuple[str, Trial, ProcessPoolExecutor]] = {}
        while True:
            while idle and (name := _next_method(studies, trials)) is not None:
                trial, worker = _ask(studies[name], settings), idle.pop()
                running[worker.submit(measure, settings.runs, name, trial.params)] = name, trial, worker
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, trial, worker = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    deaths += 1
                    if deaths > MOST_DEATHS:
                        raise RuntimeError(f"{deaths} workers were killed, the last one by {trial.params}") from error
                    console.print(f"{name}: a worker was killed, its trial runs again")
                    _run_again(studies[name], studies[name].trials[trial.number])
                    worker = start_worker()
                else:
                    for attribute, values in result.items():
                        trial.set_user_attr(attribute, values)
                    mean = fmean(result["test_error"])
                    studies[name].tell(trial, mean)
                    params = "  ".join(f"{key} {value:.3g}" for key, value in trial.params.items())
                    count = len(finished(studies[name]))
                    console.print(f"{name} {count}/{trials}  {params}  test error {mean:.2f} %")
                idle.append(worker)


def finished(study: Study) -> list[FrozenTrial]:
    """Returns the trials that count, in the order they were begun."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def equal_budgets(path: Path) -> dict[str, list[FrozenTrial]]:
    """Returns the trials that count of every study in a journal that has any: the first ones, of each as many."""
    storage = _open_storage(path)
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    trials = {study.study_name: of_method for study in studies if (of_method := finished(study))}
    budget = min(map(len, trials.values()), default=0)
    return {name: of_method[:budget] for name, of_method in trials.items()}


def best(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """Returns the trial with the lowest mean test error; of several, that with the lowest mean training loss."""

    def rank(trial: FrozenTrial) -> tuple[float, float]:
        losses = trial.user_attrs["train_loss"]
        assert trial.value is not None
        return trial.value, math.inf if None in losses else math.fsum(losses)

    return min(trials, key=rank)


def _open_storage(path: Path) -> JournalStorage:
    # Not the default lock: its symbolic link would be relative to the wrong folder, and then a dead one held for ever.
    return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))


def _next_method(studies: Mapping[str, Study], trials: int) -> str | None:
    """Returns the method that has begun the fewest trials, None if all have theirs: so they progress side by side."""
    name = min(studies, key=lambda name: _count_begun(studies[name]))
    return name if _count_begun(studies[name]) < trials else None


def _count_begun(study: Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING)))


def _ask(study: Study, settings: SearchSettings) -> Trial:
    """Begins a trial, with the settings of one that is to run again if there is any."""
    seeds = np.random.SeedSequence((settings.sampler_seed, _count_begun(study)))
    study.sampler = SAMPLERS[settings.sampler](int(seeds.generate_state(1)[0]))
    return study.ask(DOMAIN)


def _run_again(study: Study, trial: FrozenTrial) -> None:
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(trial.params)


def _prepare_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed: it would wait for its next trial for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
