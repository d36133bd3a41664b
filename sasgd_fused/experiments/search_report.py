"""What a search found: a table, and the JSON file from which a comparison takes its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sasgd_fused.experiments.methods import METHODS, MOMENTUM, Method
from sasgd_fused.experiments.report import Spread, versions
from sasgd_fused.experiments.search import DOMAIN, SearchSettings, best, finished


def make_search_table(studies: Mapping[str, Study]) -> Table:
    """Makes the table of each method's best settings, for a terminal of 80 columns."""
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        caption="The error of the best of many trials flatters it; compare on other data.",
        caption_justify="left",
    )
    table.add_column("method")
    for heading in ("trials", "lr", "weight decay", "tuning error, %"):
        table.add_column(heading, justify="right")
    for name, study in studies.items():
        trial = best(study)
        table.add_row(
            METHODS[name].label,
            str(len(finished(study))),
            f"{trial.params['lr']:.3g}",
            f"{trial.params['weight_decay']:.3g}",
            Spread.of(trial.user_attrs["test_error"]).format(2),
        )
    return table


def write_search_json(path: Path, settings: SearchSettings, studies: Mapping[str, Study]) -> None:
    """Writes settings, versions, and for each method the best trial and every one that counts."""
    content = {
        "settings": {
            **asdict(settings),
            "domain": {name: json.loads(distribution_to_json(distribution)) for name, distribution in DOMAIN.items()},
            "momentum": MOMENTUM,
        },
        "versions": versions("torch", "numpy", "scikit-learn", "optuna"),
        "best": {name: _describe(best(study)) for name, study in studies.items()},
        "trials": {name: [_describe(trial) for trial in finished(study)] for name, study in studies.items()},
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def take_best(path: Path, methods: Mapping[str, Method], seeds: tuple[int, ...]) -> dict[str, Method]:
    """Returns the methods with learning rate and weight decay from the JSON file of a search.

    Args:
        path: written by `write_search_json`.
        methods: as they are without the search.
        seeds: those that the settings shall be tried on.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, it lacks a method, or the search has used one of the seeds.
    """
    try:
        content = json.loads(path.read_text())
        tuned = {name: (float(trial["lr"]), float(trial["weight_decay"])) for name, trial in content["best"].items()}
        used = content["settings"]["runs"]["seeds"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"got {path}, want a file that `search` has written") from error
    if missing := [name for name in methods if name not in tuned]:
        raise ValueError(f"got {path} with {', '.join(tuned)}, want one that has {', '.join(missing)} too")
    if shared := set(seeds) & set(used):
        raise ValueError(f"got {path}, which was tuned on seed {min(shared)}: want other seeds to compare on")
    return {name: replace(method, lr=tuned[name][0], weight_decay=tuned[name][1]) for name, method in methods.items()}


def _describe(trial: FrozenTrial) -> dict[str, Any]:
    return {"number": trial.number, **trial.params, "mean_test_error": trial.value, **trial.user_attrs}
