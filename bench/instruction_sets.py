"""Print each instruction set's step time as a ratio to torch's: `python -m bench.instruction_sets ResNet-50`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from bench.cases import CASES, setup
from bench.interleave import Spread, paired_ratios, time_in_turns
from sasgd_fused import _C

AGAINST = "torch fused"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.instruction_sets", description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()

    steps = {AGAINST: setup(chosen.case, AGAINST, threads=chosen.threads).step}
    for name in _C.instruction_sets():
        for contender in ("native", "native, frozen norms"):
            steps[f"{contender}, {name}"] = with_instruction_set(
                name, setup(chosen.case, contender, threads=chosen.threads).step
            )
    times = time_in_turns(steps, rounds=100, seconds=3)
    for name, samples in times.items():
        ratio = Spread.of(paired_ratios(samples, times[AGAINST]))
        print(f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]  {name}")


def with_instruction_set(name: str, step: Callable[[], object]) -> Callable[[], object]:
    """Choose an instruction set before each step."""

    def chosen_step() -> None:
        _C.use_instruction_set(name)
        step()

    return chosen_step


if __name__ == "__main__":
    main()
