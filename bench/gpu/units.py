"""What the benchmark measures, piece by piece: one contender on one network is a unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.cases import parameter_count

AGAINST = "torch fused"
COMPILED = "torch compiled"
CONTENDERS = (
    *("native", "native, frozen norms", "native, norm pass", "native, bfloat16 momentum", "triton"),
    *(AGAINST, "torch foreach", "torch for-loop", "foreach", "reference"),
)
NETWORKS = ("VGG13-CIFAR", "ResNet-50", "VGG16", "ResNet-152", "Pythia-1B")
# Not among the networks of the aims: the most tensors, and half the bytes for each.
MORE = (("DenseNet-201", "float32"), ("ResNet-50", "bfloat16"), ("VGG16", "bfloat16"))
FAST = ("native", "native, frozen norms", "triton", AGAINST, "torch foreach")
FEWEST_TENSORS_FIRST = ("VGG13-CIFAR", "VGG16", "ResNet-50", "Pythia-1B", "ResNet-152")

# These wait for norms on the host in the middle of a step, which no graph can record.
WAITS = frozenset({"foreach", "reference"})


@dataclass(frozen=True)
class Unit:
    """A measurement of one contender.

    Attributes:
        case: a network.
        dtype: of parameters and gradients, by its name in torch.
        contender: a key of `GPU_CONTENDERS`.
        parts: of `"times"`, `"graph"` and `"launches"`, in this order: a profiler slows down what comes after it.
    """

    case: str
    dtype: str
    contender: str
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.contender} on {self.case} in {self.dtype}"

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Unit:
        """The unit whose `dataclasses.asdict` went through JSON."""
        return cls(**{**fields, "parts": tuple(fields["parts"])})

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    @property
    def step_bytes(self) -> int:
        """What a step has to move: it reads weight, gradient and momentum, and writes weight and momentum."""
        return 5 * self.torch_dtype.itemsize * parameter_count(self.case)

    def limit_s(self) -> float:
        """How long it may take before it counts as hung; compiling takes its time."""
        return 100 if self.contender == COMPILED else 40

    def memory_needed(self, copy_bytes: int) -> int:
        """Bytes for two contenders with three arrays each, as much again as three for what they put aside, a copy."""
        return 9 * self.torch_dtype.itemsize * parameter_count(self.case) + 2 * copy_bytes


def batches() -> list[list[Unit]]:
    """All units, the important ones first; a batch runs in a process of its own.

    `torch.compile` comes last, since it can take all the time that is left, the networks with most tensors at the end.
    """
    first = [Unit(case, "float32", contender, times_of(contender)) for case in NETWORKS for contender in CONTENDERS]
    first += [Unit(case, dtype, contender, times_of(contender)) for case, dtype in MORE for contender in FAST]
    launches = [Unit(case, "float32", contender, ("launches",)) for case in NETWORKS for contender in CONTENDERS]
    launches += [Unit("DenseNet-201", "float32", contender, ("launches",)) for contender in FAST]
    everything = (*times_of(COMPILED), "launches")
    compiled = [[Unit(case, "float32", COMPILED, everything)] for case in FEWEST_TENSORS_FIRST]
    return [first + launches, *compiled]


def times_of(contender: str) -> tuple[str, ...]:
    """The parts of a unit that take a contender's times."""
    return ("times",) if contender in WAITS else ("times", "graph")
