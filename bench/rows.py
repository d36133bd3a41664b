"""What the speed table measures: rows, each one contender on one case, and which of them take turns.

Rows of networks are pairs, so that little time passes between the two steps that are compared. Those of a curve
take turns all together: what is asked of them is not a percent but an overview.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from bench.contenders import OTHERS

AGAINST = "torch fused"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        case: a key of `CASES` or `GRID_CASES`.
        contender: a key of `GPU_CONTENDERS`.
        against: another, or the same.
        aim: the ratio to be reached, at most.
        dtype: of parameters and gradients, by its name in torch.
    """

    case: str
    contender: str
    against: str = AGAINST
    aim: float | None = None
    dtype: str = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

VARIANTS = (
    "native, frozen norms",
    "native, norm pass",
    "foreach",
    "torch foreach",
    "torch for-loop",
)
ROWS = (
    Row("VGG13-CIFAR", "native", aim=0.95),
    Row("ResNet-50", "native", aim=0.95),
    Row("VGG16", "native", aim=1.02),
    Row("DenseNet-121", "native", aim=0.75),
    Row("MobileNetV2", "native", aim=0.75),
    Row("160x64", "native", aim=0.6),
    Row("ResNet-50", "native", "reference", aim=0.35),
    # 16 instead of 20 bytes for each parameter; the random numbers cost arithmetic.
    *(
        Row(case, momentum, "native")
        for case in ("ResNet-50", "VGG16")
        for momentum in ("native, bfloat16 momentum", "native, nearest bfloat16 momentum")
    ),
    *(Row(case, variant) for case in ("ResNet-50", "160x64") for variant in VARIANTS),
)

# Every way to take a step, torch's fused one first: the others are compared with it.
FIELD = (
    *(AGAINST, "native", "native, frozen norms", "triton", "foreach", "reference"),
    *("torch foreach", "torch for-loop", *OTHERS),
)


@dataclass(frozen=True)
class Curve:
    """Step time of the whole field over one quantity.

    Attributes:
        quantity: what is varied, and what stays as it is.
        points: case and dtype by the value of the quantity.
    """

    quantity: str
    points: dict[int | str, tuple[str, str]]


CURVES = (
    Curve(
        "parameters, in 64 tensors of float32",
        {64 * elements: (f"64x{elements}", "float32") for elements in (64, 1024, 16384, 65536, 262144)},
    ),
    Curve(
        "tensors, with 1048576 parameters in float32",
        {tensors: (f"{tensors}x{2**20 // tensors}", "float32") for tensors in (1, 16, 64, 256, 1024)},
    ),
    Curve("dtype, of 64 tensors with 65536 elements", {dtype: ("64x65536", dtype) for dtype in DTYPES}),
)
# Where a step's memory is taken: far larger than any cache and than what a process needs besides.
MEMORY_CASE = "64x262144"


Group = Sequence[Row]
# What a curve is compared with where torch's fused step is wrong.
INSTEAD = "torch foreach"


def groups_of(cases: Container[str]) -> list[Group]:
    """The rows of some cases; those of a group take turns."""
    points = dict.fromkeys(point for curve in CURVES for point in curve.points.values())
    fields = [[Row(case, contender, dtype=dtype) for contender in FIELD] for case, dtype in points if case in cases]
    return [*([row] for row in ROWS if row.case in cases), *fields]


def measurable(groups: Iterable[Group], missing: Collection[tuple[str, str]]) -> Iterator[Group]:
    """What is left of groups without those that are missing with a dtype."""
    for group in groups:
        if len(group) > 1 and (AGAINST, group[0].dtype) in missing:
            group = [replace(row, against=INSTEAD) for row in group]
        left = [row for row in group if not {(row.contender, row.dtype), (row.against, row.dtype)} & set(missing)]
        if left:
            yield left
