"""What is measured: rows, each one contender on one case, and which of them take turns.

Rows of networks are pairs, so that little time passes between the two steps that are compared. Those of a curve
take turns all together: what is asked of them is not a percent but an overview.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

import torch

from bench.cases import parameter_count
from bench.contenders import COMPILED, LARS, OTHERS

AGAINST = "torch fused"
# What a curve is compared with where torch's fused step is wrong.
INSTEAD = "torch foreach"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        case: a key of `CASES`, `GRID_CASES` or `LARGE_CASES`.
        contender: a key of `CONTENDERS`.
        against: another, or the same.
        aim: the ratio to be reached, at most.
        dtype: of parameters and gradients, by its name in torch.
        copy_aim: the share of a copy's bandwidth to be reached, at least.
    """

    case: str
    contender: str
    against: str = AGAINST
    aim: float | None = None
    dtype: str = "float32"
    copy_aim: float | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


Group = Sequence[Row]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

VARIANTS = ("native, frozen norms", "native, norm pass", "foreach", "torch foreach", "torch for-loop")
CPU_ROWS = (
    Row("VGG13-CIFAR", "native", aim=0.95),
    Row("ResNet-50", "native", aim=0.95),
    Row("VGG16", "native", aim=1.02),
    Row("DenseNet-121", "native", aim=0.75),
    Row("MobileNetV2", "native", aim=0.75),
    Row("160x64", "native", aim=0.6),
    Row("ResNet-50", "native", "reference", aim=0.35),
    # One more sum in the same pass; both passes before the first step.
    *(
        Row(case, contender, "native", aim)
        for case in ("VGG13-CIFAR", "ResNet-50", "VGG16", "DenseNet-121")
        for contender, aim in (("native, relative", 1.02), ("native, relative, first step", 1.3))
    ),
    # The scale that is nearest to ours, as others compute it. Few steps: one of them writes gradients, so that those of
    # vectors grow by 1.9 a step.
    *(Row(case, contender, "native, relative") for case in ("ResNet-50", "VGG16") for contender in LARS),
    # 16 instead of 20 bytes for each parameter; the random numbers cost arithmetic.
    *(
        Row(case, momentum, "native")
        for case in ("ResNet-50", "VGG16")
        for momentum in ("native, bfloat16 momentum", "native, nearest bfloat16 momentum")
    ),
    *(Row(case, variant) for case in ("ResNet-50", "160x64") for variant in VARIANTS),
    *(Row("VGG13-CIFAR", f"native, {instructions}") for instructions in ("avx2", "baseline")),
)

GPU_NETWORKS = ("VGG13-CIFAR", "ResNet-50", "VGG16", "ResNet-152", "Pythia-1B")
# Those without an aim: the most tensors, and half the bytes for each.
GPU_PLACES = (
    *((case, "float32") for case in GPU_NETWORKS),
    *(("DenseNet-201", "float32"), ("ResNet-50", "bfloat16"), ("VGG16", "bfloat16")),
)
# What matters most comes first, and last what may take all the time that is left: compiling, most tensors at the end.
GPU_ROWS = (
    *(
        Row(
            *(case, contender + way, AGAINST + way, 0.95 if is_aim else None, dtype),
            copy_aim=0.92 if is_aim and parameter_count(case) > 1e8 else None,
        )
        for way in ("", ", graph")
        for case, dtype in GPU_PLACES
        for contender in ("native", "triton")
        for is_aim in [contender == "native" and (case, dtype) in GPU_PLACES[: len(GPU_NETWORKS)]]
    ),
    *(Row(case, variant) for case in GPU_NETWORKS for variant in (*VARIANTS, "native, bfloat16 momentum", "reference")),
)
COMPILED_ROWS = [Row(case, COMPILED) for case in ("VGG13-CIFAR", "VGG16", "ResNet-50", "Pythia-1B", "ResNet-152")]

# Every way to take a step, torch's fused one first: the others are compared with it.
FIELD = (
    *(AGAINST, "native", "native, frozen norms", "triton", "foreach", "reference"),
    *("torch foreach", "torch for-loop", *OTHERS),
)


@dataclass(frozen=True)
class Curve:
    """Step time of the whole field over one quantity.

    Attributes:
        quantity: what is varied.
        rest: what stays as it is.
        points: case and dtype by the value of the quantity.
    """

    quantity: str
    rest: str
    points: dict[int | str, tuple[str, str]]


CURVES = (
    Curve(
        "parameters",
        "in 64 tensors of float32",
        {64 * elements: (f"64x{elements}", "float32") for elements in (64, 1024, 16384, 65536, 262144)},
    ),
    Curve(
        "tensors",
        "with 1,048,576 parameters in float32",
        {tensors: (f"{tensors}x{2**20 // tensors}", "float32") for tensors in (1, 16, 64, 256, 1024)},
    ),
    Curve("dtype", "of 64 tensors with 65,536 elements", {dtype: ("64x65536", dtype) for dtype in DTYPES}),
)
# Where a step's memory is taken: far larger than any cache and than what a process needs besides.
MEMORY_CASE = "64x262144"


def groups_of(device: str, contenders: Container[str], cases: Container[str] | None = None) -> list[Group]:
    """Returns the rows of some contenders and cases, or of all cases; those of a group take turns."""
    points = dict.fromkeys(point for curve in CURVES for point in curve.points.values())
    fields = [[Row(case, contender, dtype=dtype) for contender in FIELD] for case, dtype in points]
    pairs, last = (CPU_ROWS, []) if device == "cpu" else (GPU_ROWS, COMPILED_ROWS)
    wanted = [*([row] for row in pairs), *fields, *([row] for row in last)]
    return [
        rows
        for group in wanted
        if (rows := [row for row in group if row.contender in contenders and (cases is None or row.case in cases)])
    ]


def available(group: Group, is_missing: Callable[[str, str], bool]) -> Group:
    """Returns a group without the contenders that are missing in its dtype; it may come to be empty."""
    if len(group) > 1 and is_missing(AGAINST, group[0].dtype):
        group = [replace(row, against=INSTEAD) for row in group]
    return [row for row in group if not any(is_missing(name, row.dtype) for name in (row.contender, row.against))]
