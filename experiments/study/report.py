"""What the study leaves beside its journal: a report in Markdown with its picture, and a JSON file of every figure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.report import INTERVALS
from experiments.resume import replacing
from experiments.study.choice import Tuned, grid, tune
from experiments.study.journal import Run
from experiments.study.methods import StudiedMethod
from experiments.study.picture import draw_rates
from experiments.study.plan import plan_evaluation, plan_tuning
from experiments.study.run import Outcome
from experiments.study.settings import Setting
from experiments.study.summary import Evaluated, Excess, above_best, compare, evaluate, tuned_by_all
from experiments.study.tables import make_excess_table, make_group_table, make_progress_table, make_sharpness_table

SGD = ("sgd", "sgd-decay")  # what methods are held against besides the best of a setting
BASE = "relative"  # what its ablations are held against

INTRODUCTION = """# One learning rate for every network

Each method has one learning rate and weight decay for all settings: those of its grid with the lowest mean error. They,
those for each setting and the best method of each setting were chosen by runs of two seeds, tested on images for
tuning. The errors that are compared are of five other seeds and other images, so that none of them is too low for
having been chosen as the best of many.

"""


def write_study_report(
    folder: Path,
    stem: str,
    outcomes: Mapping[Run, Outcome],
    settings: Mapping[str, Setting],
    studied: Mapping[str, StudiedMethod],
    ablations: Mapping[str, StudiedMethod],
) -> Path:
    """Writes report, picture and JSON of what is done so far; returns the report's path.

    Methods without any run are named and left out, and so are settings that lack runs of a method.

    Args:
        folder: where to.
        stem: of the files' names.
        outcomes: of a journal.
        settings: those that were planned.
        studied: the methods that were.
        ablations: variants of `BASE`, compared with it.
    """
    begun = {run.method for run in outcomes}
    methods = {name: method for name, method in studied.items() if name in begun}
    variants = {name: method for name, method in ablations.items() if name in begun}
    tuned = tune(outcomes, settings, methods | variants)
    of_methods = {name: tuned[name] for name in methods}
    evaluated = evaluate(outcomes, of_methods)
    figures: dict[str, Any] = {
        "settings": {name: asdict(setting) for name, setting in settings.items()},
        "methods": {name: _describe_tuning((methods | variants)[name], of_method) for name, of_method in tuned.items()},
        "best": evaluated.best,
    }
    parts = [INTRODUCTION + INTERVALS, _progress(outcomes, settings, studied, methods | variants)]
    parts += _comparisons(evaluated, settings, methods, of_methods, figures)
    folder.mkdir(parents=True, exist_ok=True)
    parts += _learning_rates(folder / f"{stem}.png", settings, methods, of_methods)
    if variants and BASE in methods:
        parts += _ablations(outcomes, settings, {BASE: methods[BASE], **variants}, tuned, figures)
    finite = json.loads(json.dumps(figures), parse_constant=lambda _: None)
    report = folder / f"{stem}.md"
    for path, text in ((folder / f"{stem}.json", json.dumps(finite, indent=1) + "\n"), (report, "\n".join(parts))):
        with replacing(path) as file:
            file.write(text.encode())
    return report


def _progress(
    outcomes: Mapping[Run, Outcome],
    settings: Mapping[str, Setting],
    studied: Mapping[str, StudiedMethod],
    methods: Mapping[str, StudiedMethod],
) -> str:
    """Says what is missing."""
    done, total, complete = {}, 0, True
    for name, method in methods.items():
        plans = plan_tuning(settings, {name: method}), plan_evaluation(settings, {name: method}, outcomes)
        counts = [(sum(run in outcomes for run in plan), len(plan)) for plan in plans]
        total += sum(wanted for _, wanted in counts)
        complete &= all(there == wanted for there, wanted in counts)
        done[name] = [f"{there} of {wanted}" for there, wanted in counts]
    absent = [method.label for name, method in studied.items() if name not in methods]
    begun = f"Not begun: {', '.join(absent)}.\n" if absent else ""
    if complete:
        return f"All {total} runs of these methods are done.\n{begun}"
    so_far = "The study is not finished. Each method's one rate is so far that of the settings where it is tuned.\n"
    return f"{so_far}{begun}\n{make_progress_table(methods, done).to_markdown()}"


def _comparisons(
    evaluated: Evaluated,
    settings: Mapping[str, Setting],
    methods: Mapping[str, StudiedMethod],
    tuned: Mapping[str, Tuned],
    figures: dict[str, Any],
) -> list[str]:
    """Compares all methods with the best of each setting and with SGD."""
    compared = evaluated.settings
    count = f"{len(compared)} of {len(settings)} settings have all runs of all methods begun"
    if not compared:
        return [f"## Test error\n\n{count}: nothing can be compared yet.\n"]
    parts = [f"## Test error\n\n{count}{'; the others are left out' if len(compared) < len(settings) else ''}.\n"]
    best = "the best tuned method of each setting"
    references = {best: evaluated.of_best}
    references |= {f"tuned {methods[name].label}": evaluated.for_each[name] for name in SGD if name in methods}
    for title, reference in references.items():
        for_all = {name: compare(evaluated.for_all[name], reference, compared) for name in methods}
        for_each = {name: compare(evaluated.for_each[name], reference, compared) for name in methods}
        figures[f"above {title}"] = _describe(for_all, for_each)
        parts += [f"### Above {title}\n", make_excess_table(methods, tuned, for_all, for_each, title).to_markdown()]
        if title == best:
            groups: dict[str, list[str]] = {}
            for setting in compared:
                groups.setdefault(settings[setting].varies, []).append(setting)
            parts.append(make_group_table(methods, for_all, groups).to_markdown())
    return parts


def _learning_rates(
    picture: Path,
    settings: Mapping[str, Setting],
    methods: Mapping[str, StudiedMethod],
    tuned: Mapping[str, Tuned],
) -> list[str]:
    """Shows how sharp the choice of the one rate is."""
    tried = {name: settings[name] for name in tuned_by_all(tuned)}
    if not tried:
        return ["## Learning rates\n\nNo setting has all runs for tuning of all methods begun yet.\n"]
    above = above_best(tuned, tried)
    draw_rates(picture, tried, methods, tuned, above)
    return [
        "## Learning rates\n",
        make_sharpness_table(methods, tuned, above).to_markdown(),
        f"![Error against learning rate, one curve for each of {len(tried)} settings]({picture.name})\n",
    ]


def _ablations(
    outcomes: Mapping[Run, Outcome],
    settings: Mapping[str, Setting],
    methods: Mapping[str, StudiedMethod],
    tuned: Mapping[str, Tuned],
    figures: dict[str, Any],
) -> list[str]:
    """Compares what `BASE` is made of with it, both with one setting for all and both tuned for each."""
    of_these = {name: tuned[name] for name in methods}
    evaluated, tried = evaluate(outcomes, of_these), tuned_by_all(of_these)
    parts = [f"## {methods[BASE].label}: what it is made of\n"]
    if not tried:
        return [*parts, "No setting has all runs for tuning of all variants begun yet.\n"]
    if evaluated.settings:
        for_all, for_each = (
            {name: compare(errors[name], errors[BASE], evaluated.settings) for name in methods}
            for errors in (evaluated.for_all, evaluated.for_each)
        )
        figures["ablations"] = _describe(for_all, for_each)
        reference = f"{methods[BASE].label} with its rates of the same kind"
        parts.append(make_excess_table(methods, of_these, for_all, for_each, reference).to_markdown())
    return [*parts, f"In tuning, at {', '.join(tried)}:\n", _sharpness(methods, of_these, tried)]


def _sharpness(methods: Mapping[str, StudiedMethod], tuned: Mapping[str, Tuned], tried: Iterable[str]) -> str:
    return make_sharpness_table(methods, tuned, above_best(tuned, tried)).to_markdown()


def _describe(for_all: Mapping[str, Excess], for_each: Mapping[str, Excess]) -> dict[str, Any]:
    return {name: {"for all": asdict(for_all[name]), "for each": asdict(for_each[name])} for name in for_all}


def _describe_tuning(method: StudiedMethod, tuned: Tuned) -> dict[str, Any]:
    return {
        "label": method.label,
        "grid of lr and weight decay": grid(method),
        "tuning errors": {setting: list(errors.values()) for setting, errors in tuned.errors.items()},
        "for all": tuned.for_all,
        "for each": tuned.for_each,
    }
