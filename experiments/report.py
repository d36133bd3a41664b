"""What a comparison leaves: a JSON file with every figure, and a report in Markdown that is made of such files."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch

import sasgd_fused
from experiments.analysis import Comparison, summarise
from experiments.compare import VARIATIONS, RunResult, Settings
from experiments.methods import METHODS, MOMENTUM, Tuned
from experiments.pictures import draw_curves, draw_layer_scales, draw_learning_rates, scaling_methods
from experiments.tables import make_changes, make_learning_rates, make_speeds, make_summary
from sasgd_fused.backends import extension

LIBRARIES = ("torch", "numpy", "scikit-learn", "pytorch-optimizer")
INTERVALS = (
    "Intervals are Student's, of each figure by itself: of twenty differences where there is none, one is expected to "
    "look like one.\n\n"
)


def describe(settings: Settings, methods: Mapping[str, Tuned]) -> dict[str, Any]:
    """Returns all that the figures of a comparison depend on, its times apart, as JSON has it."""
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
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    path.write_text(json.dumps(finite, indent=1, allow_nan=False) + "\n")


def read_results(path: Path) -> tuple[Comparison, dict[str, Any]]:
    """Reads a comparison back, and the versions that it was made with.

    Raises:
        OSError: the file cannot be read.
        ValueError: `write_results` has not written it.
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
    """Returns what figures depend on: the versions of the package, of Python and of the libraries named."""
    return {
        "sasgd_fused": sasgd_fused.__version__,
        "native extension": extension.why_not_installed() is None,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: version(name) for name in libraries},
    }


def write_report(folder: Path, files: Sequence[Path]) -> Path:
    """Writes report.md and its pictures, a section for each file of `write_results`; returns the report's path.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is no such file.
    """
    read = [(file, *read_results(file)) for file in files]
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, (file, comparison, made_with) in enumerate(read, 1):
        prefix = f"{number}-" if len(read) > 1 else ""
        sections.append(_make_section(folder, prefix, file, comparison, made_with))
    path = folder / "report.md"
    path.write_text("# Comparison of optimizers\n\n" + INTERVALS + "\n".join(sections), encoding="utf-8")
    return path


def _make_section(folder: Path, prefix: str, file: Path, comparison: Comparison, made_with: Mapping[str, Any]) -> str:
    def add_picture(name: str, what: str, draw: Callable[[Path, Comparison], None]) -> str:
        draw(folder / f"{prefix}{name}.png", comparison)
        return f"![{what}, {comparison.title}]({prefix}{name}.png)\n"

    settings = comparison.settings
    sources: dict[str, list[str]] = {}
    for method in comparison.methods.values():
        sources.setdefault(method.source, []).append(method.label)
    parts = [
        f"## {comparison.title}\n",
        f"`{file.name}` of `{file.parent.name}`: {settings.epochs} epochs, batches of {settings.batch_size}, schedule: "
        f"{settings.schedule}; seeds {', '.join(map(str, settings.seeds))}; device: {settings.device}, backend: "
        f"{settings.backend or 'the fastest'}; {', '.join(f'{name}: {value}' for name, value in made_with.items())}.\n",
        "Learning rates and weight decays:\n",
        *(f"- {source}: {'; '.join(labels)}." for source, labels in sources.items()),
        "",
        make_summary(comparison).to_markdown(),
        make_speeds(comparison).to_markdown(),
        add_picture("curves", "Learning curves", draw_curves),
    ]
    if comparison.varied("lr"):
        parts += ["### Learning rate\n", make_learning_rates(comparison).to_markdown()]
        parts.append(add_picture("learning-rates", "Error by rate", draw_learning_rates))
    if names := comparison.varied("init"):
        factors = [10 ** VARIATIONS[name].decades for name in names]
        headings = [f"each hidden layer times {1 / factor:g} to {factor:g}" for factor in factors]
        parts += ["### Badly scaled initialisation\n", make_changes(comparison, names, headings).to_markdown()]
    if names := comparison.varied("width"):
        headings = [name.replace("width x", "times") for name in names]
        parts += ["### Width of the hidden layers\n", make_changes(comparison, names, headings).to_markdown()]
    if scaling_methods(comparison):
        parts += ["### Layer scales\n", add_picture("layer-scales", "Layer scales", draw_layer_scales)]
    return "\n".join(parts)


def _settings(settings: Settings) -> dict[str, Any]:
    return {**asdict(settings), "momentum": MOMENTUM, "threads": torch.get_num_threads()}


def _number(value: Any) -> Any:
    """Returns what `write_results` was given: that something was not finite is all that is left of it."""
    if isinstance(value, list):
        return [_number(entry) for entry in value]
    return math.nan if value is None else value
