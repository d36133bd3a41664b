"""Measures optimizer steps against torch's, or checks a measurement: `python -m bench [--device cuda] [--check]`.

What is measured stands in `rows.py`, and how in `measure.py`, `turns.py`, `clocks.py` and `memory.py`. The files are
written anew whenever something is known. A run of the same sources on the same machine adds to them, and begins with
what they lack.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from bench.check import check
from bench.child import CallFailed, Child, ProcessLost
from bench.contenders import CONTENDERS
from bench.machine import ROOT, all_cores, machine
from bench.measure import Effort, measure_all
from bench.memory import measure_memory
from bench.rows import Group, groups_of
from bench.table import THE_REST, Table

RESULTS = ROOT / "bench" / "results"
RUNS = ROOT / "runs"
BASELINE = "cpu"
EFFORTS = {"cpu": Effort(100, 3, blocks=4, limit_s=1800), "cuda": Effort(20, 0.5, blocks=1, limit_s=100)}


def fill(table: Table, wanted: Sequence[tuple[Group, int]], effort: Effort, device: str) -> None:
    """Measures groups, each with a number of threads, then memory."""
    with Child() as child:
        for results in measure_all(child, wanted, effort, device, table.left_out.__setitem__):
            table.add(results)
    for contender in table.without_memory():
        try:
            table.memories[contender] = measure_memory(contender, table.most_threads(), device)
        except (CallFailed, ProcessLost) as error:
            table.left_out[f"memory of {contender}"] = str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for; returns the exit status, which is that of `check` or 0."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Steps of optimizers against torch's.")
    parser.add_argument("--device", choices=EFFORTS, default="cpu")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="or TENSORSxELEMENTS, default all")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, metavar="NAME",
                        help=f"default all: {'; '.join(CONTENDERS)}")  # fmt: skip
    parser.add_argument("--threads", type=int, nargs="+", help="default one, and on a CPU all")
    parser.add_argument("--rounds", type=int, help="at least so many for a row")
    parser.add_argument("--seconds", type=float, help="at least so long")
    parser.add_argument("--commit", help="where the sources are no checkout of git")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--out", metavar="NAME", help="write bench/results/NAME.{json,md,png}, not runs/bench.*")
    kind.add_argument("--check", nargs="?", const=BASELINE, metavar="NAME",
                      help=f"compare with bench/results/NAME.json, default {BASELINE}")  # fmt: skip
    chosen = parser.parse_args(arguments)

    device: str = chosen.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device here")
    every = dict.fromkeys(row.case for group in groups_of(device, CONTENDERS) for row in group)
    if unknown := set(chosen.networks or ()) - set(every):
        parser.error(f"--networks: got {', '.join(sorted(unknown))}, want some of {', '.join(every)}")
    threads = chosen.threads or (sorted({1, all_cores()}) if device == "cpu" else [1])
    given = {name: getattr(chosen, name) for name in ("rounds", "seconds") if getattr(chosen, name) is not None}
    effort = replace(EFFORTS[device], **given)
    where = machine(device, chosen.commit)
    groups = groups_of(device, chosen.contenders, chosen.networks)
    wanted = [(group, count) for group in groups for count in threads]
    if chosen.check is not None:
        path = RESULTS / f"{chosen.check}.json"
        if not path.is_file():
            parser.error(f"{path.name} is not in {path.parent.name}/; `--out {path.stem}` writes it")
        return check(path, wanted, effort, device, where)

    table = Table(RESULTS / chosen.out if chosen.out else RUNS / "bench", where)
    known = {(row.case, row.contender, row.dtype, count) for row, count in table.results}
    # A group that is known lacks whom this machine does not have.
    parts: dict[bool, list[tuple[Group, int]]] = {False: [], True: []}
    for group, count in wanted:
        is_known = any((row.case, row.contender, row.dtype, count) in known for row in group)
        parts[is_known].append((group, count))
    try:
        for part in parts.values():
            fill(table, part, effort, device)
    except KeyboardInterrupt:
        table.left_out[THE_REST] = "stopped"
    table.draw()
    table.write()
    print(table.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
