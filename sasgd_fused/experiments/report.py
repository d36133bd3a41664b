"""The report: one Markdown file with the tables and pictures of one comparison or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sasgd_fused.experiments.analysis import Comparison
from sasgd_fused.experiments.pictures import draw_curves, draw_layer_scales, draw_learning_rates, scaling_methods
from sasgd_fused.experiments.results import read_results
from sasgd_fused.experiments.tables import make_changes, make_learning_rates, make_speeds, make_summary
from sasgd_fused.experiments.variations import VARIATIONS

INTERVALS = (
    "Intervals are Student's, of each figure by itself: of twenty differences where there is none, one is expected to "
    "look like one.\n\n"
)
Draw = Callable[[Path, Comparison], None]


def write_report(folder: Path, files: Sequence[Path]) -> Path:
    """Writes report.md and its pictures.

    Args:
        folder: where to; it is made if it is not there.
        files: written by `write_results`; a section for each.

    Returns:
        The report's path.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is no such file.
    """
    read = [(file, *read_results(file)) for file in files]
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for index, (file, comparison, versions) in enumerate(read):
        prefix = f"{index + 1}-" if len(read) > 1 else ""
        sections.append(_make_section(folder, file, comparison, versions, prefix))
    path = folder / "report.md"
    path.write_text("# Comparison of optimizers\n\n" + INTERVALS + "\n".join(sections), encoding="utf-8")
    return path


def _make_section(folder: Path, file: Path, comparison: Comparison, versions: Mapping[str, Any], prefix: str) -> str:
    settings = comparison.settings
    seeds = ", ".join(map(str, settings.seeds))
    made_with = ", ".join(f"{name}: {value}" for name, value in versions.items())
    sources: dict[str, list[str]] = {}
    for method in comparison.methods.values():
        sources.setdefault(method.source, []).append(method.label)
    parts = [
        f"## {comparison.title}\n",
        f"`{file.name}` of `{file.parent.name}`: {settings.epochs} epochs, batches of {settings.batch_size}, schedule: "
        f"{settings.schedule}; seeds {seeds}; device: {settings.device}, backend: {settings.backend or 'the fastest'}; "
        f"{made_with}.\n",
        "Learning rates and weight decays:\n",
        *(f"- {source}: {'; '.join(labels)}." for source, labels in sources.items()),
        "",
        make_summary(comparison).to_markdown(),
        make_speeds(comparison).to_markdown(),
        _add_picture(folder, f"{prefix}curves.png", "Learning curves", comparison, draw_curves),
    ]
    if comparison.varied("lr"):
        parts += [
            "### Learning rate\n",
            make_learning_rates(comparison).to_markdown(),
            _add_picture(folder, f"{prefix}learning-rates.png", "Error by rate", comparison, draw_learning_rates),
        ]
    if initialisations := comparison.varied("init"):
        factors = [10 ** VARIATIONS[name].decades for name in initialisations]
        headings = [f"each hidden layer times {1 / factor:g} to {factor:g}" for factor in factors]
        parts += [
            "### Badly scaled initialisation\n",
            make_changes(comparison, initialisations, headings).to_markdown(),
        ]
    if widths := comparison.varied("width"):
        parts += [
            "### Width of the hidden layers\n",
            make_changes(comparison, widths, [name.replace("width x", "times") for name in widths]).to_markdown(),
        ]
    if scaling_methods(comparison):
        parts += [
            "### Layer scales\n",
            _add_picture(folder, f"{prefix}layer-scales.png", "Layer scales", comparison, draw_layer_scales),
        ]
    return "\n".join(parts)


def _add_picture(folder: Path, name: str, what: str, comparison: Comparison, draw: Draw) -> str:
    draw(folder / name, comparison)
    return f"![{what}, {comparison.title}]({name})\n"
