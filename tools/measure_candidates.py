"""Measures the candidates of the CUDA kernels beside them: `python -m tools.measure_candidates --out FILES`.

FILES-candidates.json and .md are written anew after each place, and a later run of the same sources on the same machine
measures what they lack. All contenders of a place take turns, each with the same values in memory of its own; on a GPU
a captured step is replayed, with nothing of it in the cache. Each has taken as many steps in the end, so that whatever
a candidate leaves must have the kernels' bits. What matters most is built and measured before the rest is built.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor

from bench.cases import Setup, setup
from bench.child import CallFailed, Child, ProcessLost
from bench.clocks import clock_for
from bench.contenders import CONTENDERS, LR, MOMENTUM, WEIGHT_DECAY, replayed
from bench.machine import ROOT, belong_together, machine
from bench.table import write_whole
from bench.turns import Spread, time_in_turns
from sasgd_fused.backends.device_state import CarriedState
from tools.candidate_report import AGAIN, KERNELS, Figures, markdown
from tools.cuda_candidates import CANDIDATES, UNCHANGED, build_candidates, enter

LIMIT_S = {"cuda": 30, "cpu": 1800}  # after so long a place counts as hung
ROUNDS = 50
BATCHES = 10  # of the rounds one after the other; their medians show how sure the median is, and drift too


@dataclass(frozen=True)
class Place:
    """Where candidates are measured."""

    case: str
    candidates: Sequence[str]
    dtype: str = "float32"
    momentum_dtype: torch.dtype | None = None


SMALLEST = "1x1048576"
NETWORKS = ("VGG13-CIFAR", "ResNet-50", "VGG16")
ON_NETWORKS = [name for name in CANDIDATES if name not in ("without look-up", "short arguments")]
FIRST = (UNCHANGED, "prefetch", "tensor trees", "prefetch, tensor trees", "without epilogue")
PLACES = {
    **{case: Place(case, ON_NETWORKS) for case in NETWORKS},
    SMALLEST: Place(SMALLEST, [UNCHANGED, "without look-up"]),
    "DenseNet-201": Place("DenseNet-201", [UNCHANGED, "short arguments"]),
    "ResNet-50, bfloat16 momentum": Place("ResNet-50", ["short arguments"], momentum_dtype=torch.bfloat16),
    **{f"{case}, bfloat16": Place(case, ON_NETWORKS, "bfloat16") for case in NETWORKS},
}


def measure(place: Place, modules: Mapping[str, Path | None], device: str, seconds: float) -> Figures:
    """Times the kernels, the kernels again, and candidates in turns."""
    for name, module in modules.items():
        enter(name, module)
    backends = {KERNELS: "native", AGAIN: "native", **{name: name for name in modules}}
    setups = {name: _prepared(place, backend, device) for name, backend in backends.items()}
    takes = {name: clock_for(device).timer(made.step)[0] for name, made in setups.items()}
    times = time_in_turns(takes, ROUNDS, seconds)
    # Without a graph the host enqueues the step in `optimizer.step`.
    on_host = {name: _host_timer(made.optimizer.step) for name, made in setups.items()} if device == "cuda" else {}
    host_times = time_in_turns(on_host, ROUNDS, 0) if on_host else {}
    for made in setups.values():
        made.check_values()
    return Figures(
        rounds=len(times[KERNELS]),
        time_us=Spread.of(times[KERNELS]).median / 1e3,
        differences_us={name: differences(times, name) for name in backends if name != KERNELS},
        host_us=Spread.of(host_times[KERNELS]).median / 1e3 if host_times else None,
        host_differences_us={name: differences(host_times, name) for name in host_times if name != KERNELS},
        same_bits={name: take_same_steps(made, setups[KERNELS]) for name, made in setups.items()},
    )


def _prepared(place: Place, backend: str, device: str) -> Setup:
    def make(parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, Callable[[], object]]:
        from sasgd_fused import ScaleAmendedSGD

        options: dict[str, Any] = {"backend": backend}
        if place.momentum_dtype is not None:
            options |= {"momentum_dtype": place.momentum_dtype, "rounding": "stochastic"}
        optimizer = ScaleAmendedSGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, **options)
        return optimizer, optimizer.step

    CONTENDERS["candidate"] = make
    CONTENDERS["candidate, graph"] = replayed("candidate")
    contender = "candidate, graph" if device == "cuda" else "candidate"
    return setup(place.case, contender, getattr(torch, place.dtype), device=device)


def take_same_steps(one: Setup, other: Setup) -> bool:
    """Returns whether two have left the same bits, in weights, momentum and what their next steps go on with.

    Weights alone would hide a wrong norm, since they hardly move. Nor may a step have taken weights for written unseen.
    """
    left, by_other = _left_by(one), _left_by(other)
    is_stale = any(carried.stale_steps.any() for made in (one, other) for carried in _carried_by(made))
    return not is_stale and all(map(torch.equal, left, by_other))


def _left_by(made: Setup) -> list[Tensor]:
    momentum = [made.optimizer.state[parameter]["momentum_buffer"] for parameter in made.parameters]
    carried = [tensor for of_backend in _carried_by(made) for tensor in of_backend]
    # As bytes: a NaN is not equal to itself.
    return [tensor.detach().reshape(-1).view(torch.uint8) for tensor in (*made.parameters, *momentum, *carried)]


def _carried_by(made: Setup) -> list[CarriedState]:
    backends = made.optimizer._current_backends()  # type: ignore[attr-defined]
    return [backend.device_state.carried for backend in backends]


def _host_timer(step: Callable[[], object]) -> Callable[[], int]:
    def take() -> int:
        torch.cuda.synchronize()
        start = perf_counter_ns()
        step()
        return perf_counter_ns() - start

    return take


def differences(times: Mapping[str, Sequence[int]], name: str) -> Spread:
    """Returns by how many microseconds more a contender took than the kernels, as medians of batches of rounds."""
    more = [(time - kernels) / 1e3 for time, kernels in zip(times[name], times[KERNELS], strict=True)]
    size = max(1, len(more) // BATCHES)
    return Spread.of([statistics.median(more[at : at + size]) for at in range(0, len(more) - size + 1, size)])


def measure_alone_where_needed(
    child: Child, place: Place, modules: Mapping[str, Path | None], device: str, seconds: float, notes: dict[str, str]
) -> list[Figures]:
    """Measures all at once, or, where one of them brings that down, one after the other; each beside the unchanged."""
    try:
        return [child.call(LIMIT_S[device], measure, place, modules, device, seconds)]
    except (CallFailed, ProcessLost) as error:
        unchanged = {name: module for name, module in modules.items() if name == UNCHANGED}
        alone = [{**unchanged, name: module} for name, module in modules.items() if name != UNCHANGED]
        who = "all at once" if len(alone) > 1 else [*modules][-1]
        notes[f"{who} on {place.case}"] = str(error)
        if len(alone) <= 1:
            return []
    return [found for one in alone for found in measure_alone_where_needed(child, place, one, device, seconds, notes)]


def build(names: Sequence[str], device: str, notes: dict[str, str]) -> dict[str, Path | None]:
    """Builds candidates, for the GPU at hand where nobody says for which; notes why those are missing that are."""
    if device == "cpu" or not names:
        return dict.fromkeys(names)
    major, minor = torch.cuda.get_device_capability()
    built = build_candidates(names, () if os.environ.get("SASGD_CUDA_ARCHITECTURES") else (10 * major + minor,))
    notes |= {name: found for name, found in built.items() if isinstance(found, str)}
    return {name: found for name, found in built.items() if isinstance(found, Path)}


def _measured(known: Sequence[Figures]) -> set[str]:
    return {name for figures in known for name in figures.differences_us}


def _lacking(place: Place, asked: Sequence[str], known: Sequence[Figures]) -> list[str]:
    """Returns which of the candidates have no figures at a place yet, and with them the unchanged."""
    lacking = {*asked} & {*place.candidates} - _measured(known)
    return [name for name in place.candidates if name in lacking or (lacking and name == UNCHANGED)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds and measures, and prints the report."""
    parser = argparse.ArgumentParser(prog="python -m tools.measure_candidates", description="Other kernels than ours.")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench", metavar="FILES")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run, of its own kernel")
    parser.add_argument("--places", nargs="+", choices=PLACES, metavar="NAME",
                        help=f"default all: {'; '.join(PLACES)}; in a dry run the smallest")  # fmt: skip
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=[*CANDIDATES], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=2.0, help="at least so long for a place")
    parser.add_argument("--commit", help="where the sources are no checkout of git")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device here")
    where = machine(chosen.device, chosen.commit)
    path: Path = chosen.out.with_name(f"{chosen.out.name}-candidates.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, list[Figures]] = {}
    notes: dict[str, str] = {}
    if path.is_file() and belong_together((earlier := json.loads(path.read_text()))["where"], where):
        known = {place: [Figures.from_json(found) for found in figures] for place, figures in earlier["places"].items()}

    def write() -> None:
        places = {place: [asdict(found) for found in figures] for place, figures in known.items()}
        write_whole(path, json.dumps({"where": where, "left_out": notes, "places": places}, indent=1) + "\n")
        write_whole(path.with_suffix(".md"), markdown(known, notes, where))

    places = {name: PLACES[name] for name in chosen.places or (PLACES if chosen.device == "cuda" else [SMALLEST])}
    try:
        with Child() as child:
            for wave in (FIRST, [name for name in CANDIDATES if name not in FIRST]):
                asked = [name for name in wave if name in chosen.candidates]
                lacking = {name: _lacking(place, asked, known.get(name, [])) for name, place in places.items()}
                wanted = {candidate for here in lacking.values() for candidate in here}
                modules = build([name for name in CANDIDATES if name in wanted], chosen.device, notes)
                for name, place in places.items():
                    here = {candidate: modules[candidate] for candidate in lacking[name] if candidate in modules}
                    if here.keys() <= _measured(known.get(name, [])):
                        continue
                    found = measure_alone_where_needed(child, place, here, chosen.device, chosen.seconds, notes)
                    known[name] = [*known.get(name, []), *found]
                    write()
    except KeyboardInterrupt:
        notes["the rest"] = "stopped"
    write()
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
