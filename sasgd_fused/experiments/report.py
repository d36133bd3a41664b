"""What a comparison found: a summary, its table, and a JSON file with every figure."""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

import sasgd_fused
from sasgd_fused.backends import extension
from sasgd_fused.experiments.compare import Settings
from sasgd_fused.experiments.methods import MOMENTUM, Method
from sasgd_fused.experiments.train import RunResult


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over seeds; NaN where a run diverged or one seed has no deviation."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Takes one value for each seed."""
        mean = math.fsum(values) / len(values)
        deviation = statistics.stdev(values) if len(values) > 1 and math.isfinite(mean) else math.nan
        return cls(mean, deviation)

    def format(self, digits: int) -> str:
        """Mean ± standard deviation, or the mean alone."""
        return f"{self.mean:.{digits}f}" + (f" ± {self.std:.{digits}f}" if math.isfinite(self.std) else "")


@dataclass(frozen=True)
class Summary:
    """One row of the table.

    Attributes:
        method: key in `METHODS`.
        label: its name.
        lr: learning rate at the first step.
        weight_decay: coefficient of the weight decay.
        runs: how many seeds.
        train_loss: cross-entropy in the last epoch.
        test_error: percent after the last epoch.
        step_ms: median milliseconds of `optimizer.step()` in each run.
    """

    method: str
    label: str
    lr: float
    weight_decay: float
    runs: int
    train_loss: Spread
    test_error: Spread
    step_ms: Spread


def summarise(results: Sequence[RunResult], methods: Mapping[str, Method]) -> list[Summary]:
    """Summarises the runs of every method."""
    summaries = []
    for name, method in methods.items():
        runs = [result for result in results if result.method == name]
        summaries.append(
            Summary(
                name,
                method.label,
                method.lr,
                method.weight_decay,
                len(runs),
                Spread.of([run.train_loss[-1] for run in runs]),
                Spread.of([run.test_error[-1] for run in runs]),
                Spread.of([run.step_ms for run in runs]),
            )
        )
    return summaries


def make_table(summaries: Sequence[Summary]) -> Table:
    """Makes the table for a terminal of 80 columns."""
    seeds = f"; mean ± standard deviation over {summaries[0].runs} seeds" if summaries[0].runs > 1 else ""
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        caption=f"Last epoch{seeds}",
        caption_justify="left",
    )
    table.add_column("method")
    for heading in ("lr", "weight\ndecay", "training loss", "test error,\n%", "optimizer,\nms per step"):
        table.add_column(heading, justify="right")
    for row in summaries:
        table.add_row(
            row.label,
            f"{row.lr:.3g}",
            f"{row.weight_decay:.3g}",
            row.train_loss.format(4),
            row.test_error.format(2),
            row.step_ms.format(3),
        )
    return table


def describe(settings: Settings, methods: Mapping[str, Method]) -> dict[str, Any]:
    """All that the figures of a comparison depend on, its times apart, as JSON has it."""
    return {
        **_settings(settings),
        "methods": {name: {"lr": method.lr, "weight_decay": method.weight_decay} for name, method in methods.items()},
        **{name: version(name) for name in ("torch", "scikit-learn")},
        "sasgd_fused": sasgd_fused.__version__,
    }


def _settings(settings: Settings) -> dict[str, Any]:
    return {**asdict(settings), "momentum": MOMENTUM, "threads": torch.get_num_threads()}


def write_json(path: Path, settings: Settings, results: Sequence[RunResult], summaries: Sequence[Summary]) -> None:
    """Writes settings, versions, summary and every run's curves; what is not finite becomes null."""
    content = {
        "settings": _settings(settings),
        "versions": versions("torch", "numpy", "scikit-learn"),
        "summary": [asdict(row) for row in summaries],
        "runs": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def versions(*libraries: str) -> dict[str, str | bool]:
    """Returns what the figures depend on: the versions of the package, of Python and of the libraries named."""
    return {
        "sasgd_fused": sasgd_fused.__version__,
        "native extension": extension.why_not_installed() is None,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: version(name) for name in libraries},
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
