"""Methods that learn the digits, and comparisons whose figures are made up."""

from __future__ import annotations

from dataclasses import replace

from experiments.analysis import Comparison
from experiments.compare import KINDS, TUNED, RunResult, Settings, choose
from experiments.methods import METHODS, why_unavailable

RATES = {"sgd": 0.1, "paper": 0.01, "recommended": 0.01, "lars": 0.01, "adamw": 0.01, "muon": 0.01}
CHOSEN = {name: METHODS[name].tuned(lr, 5e-3) for name, lr in RATES.items() if why_unavailable(name) is None}
METHOD = {"sgd": METHODS["sgd"].tuned(0.5, 1e-3), "paper": METHODS["paper"].tuned(0.02, 3.63e-5)}


def make_run(method: str, seed: int, error: float, variation: str = TUNED) -> RunResult:
    scales = [[2.0, 4.0], [1.0, 8.0]] if method == "paper" else []
    return RunResult(method, seed, variation, [2.0, 0.25 + seed], [50.0, error], scales, 0.5, 1.0)


def make_comparison() -> Comparison:
    """Makes one of two methods with three seeds, of which the last was run first."""
    settings = Settings(seeds=(0, 1, 2), epochs=2)
    errors = {"sgd": (10.0, 12.0, 14.0), "paper": (9.0, 12.0, 12.0)}
    runs = [make_run(name, seed, values[seed]) for seed in (2, 0, 1) for name, values in errors.items()]
    return Comparison(settings, METHOD, runs)


def make_varied() -> Comparison:
    """Makes the same with every variation; what each adds to the error depends on method and seed."""
    comparison, variations = make_comparison(), choose(KINDS)
    runs = list(comparison.results)
    for place, variation in enumerate(variations[1:], 1):
        for base in comparison.results:
            added = place * (1 + base.seed) if base.method == "sgd" else 0.4 * place
            runs.append(make_run(base.method, base.seed, base.test_error[-1] + added, variation))
    return replace(comparison, settings=replace(comparison.settings, variations=variations), results=runs)
