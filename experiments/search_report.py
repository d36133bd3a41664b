"""What a search found: a table, and the JSON file from which a comparison takes its settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial

from experiments.compare import Settings
from experiments.methods import METHODS, MOMENTUM, Tuned
from experiments.report import versions
from experiments.search import DOMAIN, SearchSettings, best
from experiments.tables import Table


def make_search_table(trials: Mapping[str, Sequence[FrozenTrial]]) -> Table:
    """Makes the table of each method's best settings, of the trials that `equal_budgets` has."""
    rows = []
    for name, of_method in trials.items():
        trial = best(of_method)
        lr, weight_decay = f"{trial.params['lr']:.3g}", f"{trial.params['weight_decay']:.3g}"
        rows.append([METHODS[name].label, str(len(of_method)), lr, weight_decay, f"{trial.value:.2f}"])
    return Table(
        ("method", "trials", "lr", "weight decay", "tuning error, %"),
        rows,
        "The error of the best of many trials flatters it; compare on other data.",
    )


def write_search_json(path: Path, settings: SearchSettings, trials: Mapping[str, Sequence[FrozenTrial]]) -> None:
    """Writes settings, versions, and for each method the best trial and every one that `equal_budgets` has."""
    content = {
        "settings": {
            **asdict(settings),
            "domain": {name: json.loads(distribution_to_json(distribution)) for name, distribution in DOMAIN.items()},
            "momentum": MOMENTUM,
        },
        "versions": versions("torch", "numpy", "scikit-learn", "optuna"),
        "best": {name: _describe(best(of_method)) for name, of_method in trials.items()},
        "trials": {name: [_describe(trial) for trial in of_method] for name, of_method in trials.items()},
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def take_best(path: Path, names: Iterable[str], settings: Settings) -> dict[str, Tuned]:
    """Returns the methods with learning rate and weight decay from the JSON file of a search.

    Args:
        path: written by `write_search_json`.
        names: which methods, keys in `METHODS`.
        settings: those that the methods shall be compared at.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, it lacks a method, the search was for other data, another network, number of
            epochs, batch size or schedule, or it has used one of the seeds.
    """
    try:
        content = json.loads(path.read_text())
        found = {name: (float(trial["lr"]), float(trial["weight_decay"])) for name, trial in content["best"].items()}
        counts = {name: len(trials) for name, trials in content["trials"].items()}
        runs = content["settings"]["runs"]
        same = {name: runs[name] for name in ("model", "epochs", "batch_size", "schedule")}
        used, dataset = runs["seeds"], runs["dataset"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"got {path}, want a file that `search` has written") from error
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"got {path} with {', '.join(found)}, want one that has {', '.join(missing)} too")
    if dataset == settings.dataset:
        raise ValueError(f"got {path}, which was tuned by the error on {dataset}: want other data to compare on")
    wanted = f"{settings.dataset}-tuning"
    if dataset != wanted:
        raise ValueError(f"got {path} on {dataset}, want one on {wanted}, to compare on {settings.dataset}")
    for name, value in same.items():
        if value != getattr(settings, name):
            raise ValueError(f"got {path} with {name} {value}, want {getattr(settings, name)}, as the comparison has")
    if shared := set(settings.seeds) & set(used):
        raise ValueError(f"got {path}, which was tuned on seed {min(shared)}: want other seeds to compare on")
    return {name: METHODS[name].tuned(*found[name], source=f"search, {counts[name]} trials") for name in names}


def _describe(trial: FrozenTrial) -> dict[str, Any]:
    return {"number": trial.number, **trial.params, "mean_test_error": trial.value, **trial.user_attrs}
