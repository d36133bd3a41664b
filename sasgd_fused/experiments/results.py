"""The JSON file of a comparison: every figure, and all that the figures depend on."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch

import sasgd_fused
from sasgd_fused.backends import extension
from sasgd_fused.experiments.analysis import Comparison, summarise
from sasgd_fused.experiments.compare import Settings
from sasgd_fused.experiments.methods import METHODS, MOMENTUM, Tuned
from sasgd_fused.experiments.train import RunResult
from sasgd_fused.experiments.variations import VARIATIONS

LIBRARIES = ("torch", "numpy", "scikit-learn", "pytorch-optimizer")


def describe(settings: Settings, methods: Mapping[str, Tuned]) -> dict[str, Any]:
    """All that the figures of a comparison depend on, its times apart, as JSON has it."""
    return {
        **_settings(settings),
        "methods": {name: {"lr": method.lr, "weight_decay": method.weight_decay} for name, method in methods.items()},
        **{name: version(name) for name in LIBRARIES},
        "sasgd_fused": sasgd_fused.__version__,
    }


def write_results(path: Path, comparison: Comparison) -> None:
    """Writes settings, versions, summary and every run's curves; what is not finite becomes null."""
    content = {
        "settings": _settings(comparison.settings),
        "methods": {
            name: {"lr": method.lr, "weight_decay": method.weight_decay, "source": method.source}
            for name, method in comparison.methods.items()
        },
        "versions": versions(*LIBRARIES),
        "summary": [asdict(row) for row in summarise(comparison)],
        "runs": [asdict(result) for result in comparison.results],
    }
    path.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def read_results(path: Path) -> tuple[Comparison, dict[str, Any]]:
    """Reads a comparison back, and the versions that it was made with.

    Args:
        path: written by `write_results`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file.
    """
    try:
        content = json.loads(path.read_text())
        given: dict[str, Any] = {field.name: content["settings"][field.name] for field in fields(Settings)}
        given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        settings = Settings(**given)
        methods = {name: METHODS[name].tuned(**rates) for name, rates in content["methods"].items()}
        results = [RunResult(**{key: _number(value) for key, value in run.items()}) for run in content["runs"]]
        wanted = sorted(product(methods, set(settings.seeds), VARIATIONS.keys() & settings.variations))
        complete = len(wanted) == len(methods) * len(settings.seeds) * len(settings.variations)
        complete &= sorted((run.method, run.seed, run.variation) for run in results) == wanted
        complete &= {len(curve) for run in results for curve in (run.train_loss, run.test_error)} == {settings.epochs}
        found = content["versions"] | {"threads": content["settings"]["threads"]}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"got {path}, want a file that this version of `compare` has written") from error
    if not complete:
        raise ValueError(f"got {path}, which lacks runs or epochs or has too many, want what `compare` has written")
    return Comparison(settings, methods, results), found


def versions(*libraries: str) -> dict[str, str | bool]:
    """Returns what the figures depend on: the versions of the package, of Python and of the libraries named."""
    return {
        "sasgd_fused": sasgd_fused.__version__,
        "native extension": extension.why_not_installed() is None,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: version(name) for name in libraries},
    }


def _settings(settings: Settings) -> dict[str, Any]:
    return {**asdict(settings), "momentum": MOMENTUM, "threads": torch.get_num_threads()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    """What `_finite` was given; that something was not finite is all that is left of it."""
    if isinstance(value, list):
        return [_number(entry) for entry in value]
    return math.nan if value is None else value
