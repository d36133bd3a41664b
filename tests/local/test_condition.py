"""What one gradient step leaves of a back-matching loss: the claims about initialisation, skips and batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sasgd_fused.local import (
    ConditionReport,
    ConditionRow,
    back_matching,
    condition_report,
    exact,
    local_hessian,
    one_step,
)
from tests.local.networks import Skip, dense_jacobian, mixed_blocks, picture

DOUBLE = torch.float64


def layer(matrix: Tensor) -> nn.Linear:
    found = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).to(matrix.dtype)
    with torch.no_grad():
        found.weight.copy_(matrix)
    return found


def one(block: nn.Module, columns: int, batch: int = 1) -> ConditionRow:
    inputs = torch.randn(batch, columns, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    (row,) = condition_report(block, inputs, [""])
    return row


def gaussian(rows: int, columns: int, variance: float = 1.0) -> Tensor:
    return torch.randn(rows, columns, dtype=DOUBLE) * math.sqrt(variance / columns)


def orthogonal(rows: int, columns: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("rows", "columns", "plain", "he", "best"), [(128, 128, 1.0, 5.0, 0), (64, 128, 0.5, 3.0, 0), (128, 64, 2, 9, 0.5)]
)
def test_scale_and_orthogonality(rows: int, columns: int, plain: float, he: float, best: float) -> None:
    """By the law of (11), E (1 − λ)² = 1 − 2σ² + σ⁴ (1 + c): the figures of the parameters, for σ² = 1 and 2."""
    torch.manual_seed(0)
    first = one(layer(gaussian(rows, columns)), columns)
    assert first.left == pytest.approx(plain, rel=0.1)
    assert one(layer(gaussian(rows, columns, 2.0)), columns).left == pytest.approx(he, rel=0.1)
    exact = one(layer(orthogonal(rows, columns)), columns)
    assert exact.left == pytest.approx(best, abs=1e-12)
    assert exact.condition == pytest.approx(1, abs=1e-12) and exact.rank == min(rows, columns)
    assert exact.effective_rank == pytest.approx(min(rows, columns)) and exact.best_left == pytest.approx(
        best, abs=1e-12
    )
    assert exact.largest == pytest.approx(1) and exact.mean == pytest.approx(min(1, rows / columns))


def test_skips() -> None:
    """An orthogonal skip is as good as an identity, a Gaussian one is not."""
    torch.manual_seed(0)
    branch = layer(0.3 * gaussian(128, 128))
    identity, turned, random = (
        one(Skip(branch, connection), 128)
        for connection in (nn.Identity(), layer(orthogonal(128, 128)), layer(gaussian(128, 128)))
    )
    for row in (identity, turned):
        assert row.left < 0.25 and row.condition is not None and row.condition < 4
    assert random.left > 1.06 and random.condition is not None and random.condition > 100
    assert not identity.marks and random.marks == ["one step makes the match worse"]


def test_batch_norm_mends_the_scale_and_not_the_condition() -> None:
    torch.manual_seed(0)
    matrix = gaussian(48, 48)
    rows = {}
    for factor in (1.0, 5.0):
        block = nn.Sequential(layer(factor * matrix), nn.BatchNorm1d(48, affine=False, eps=1e-12).double())
        rows[factor] = one(block, 48, batch=96)
        assert rows[factor].left == pytest.approx(rows[1.0].left, rel=1e-8)
    plain = one(layer(matrix), 48)
    assert one(layer(5 * matrix), 48).left > 100 * plain.left
    for quantity in ("left", "best_left", "largest"):
        assert getattr(rows[1.0], quantity) == pytest.approx(getattr(plain, quantity), rel=0.3)
    # With few samples a unit's variance in the batch may be small, and its derivative is large.
    assert one(block, 48, batch=4).left > 5


def test_remark_1_with_its_constant_corrected() -> None:
    """σ_max(A) ≤ s < 1 gives C(Q + A) ≤ (1 + s) / (1 − s); with the paper's 1 − s in the place of s it does not."""
    torch.manual_seed(0)
    for number in range(60):
        matrix, s = torch.randn(16, 16, dtype=DOUBLE), 0.05 + 0.9 * number / 60
        matrix *= s / torch.linalg.matrix_norm(matrix, 2)
        for skip in (torch.eye(16, dtype=DOUBLE), orthogonal(16, 16)):
            condition = one(Skip(layer(matrix), layer(skip)), 16).condition
            assert condition is not None and condition <= (1 + s) / (1 - s) * (1 + 1e-10)
    s, branch = 0.1, layer(torch.tensor([-0.89, 0.65], dtype=DOUBLE).diag())
    alone, both = one(branch, 2), one(Skip(branch), 2)
    assert math.sqrt(alone.largest) < 1 - s and alone.condition > (1 + s) / (1 - s)  # both premises
    assert both.condition == pytest.approx(15) and both.condition > alone.condition  # and not the conclusion (15)


def test_signals_through_depth() -> None:
    """The cosine between what back-propagation and exact solutions want of the network's input."""
    torch.manual_seed(0)

    def cosine(matrices: list[Tensor]) -> float:
        direction = torch.randn(1, 96, dtype=DOUBLE)
        step, best = (
            back_matching(map(layer, matrices), direction, lambda output: (output * direction).sum(), solver=solver)
            for solver in (one_step, exact())
        )
        return float(torch.cosine_similarity(step.displacements[0], best.displacements[0]))

    eye = torch.eye(96, dtype=DOUBLE)
    assert cosine([orthogonal(96, 96) for _ in range(20)]) > 1 - 1e-12
    assert abs(cosine([gaussian(96, 96)])) < 0.3
    skips = [cosine([eye + 0.3 * gaussian(96, 96) for _ in range(depth)]) for depth in (1, 5, 20)]
    assert skips[0] > 0.8 and skips[0] > skips[1] > skips[2] and skips[1] > 0.4 and skips[2] < 0.4


def test_figures_are_those_of_the_dense_jacobian() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).double()
    inputs = torch.randn(3, 2, 6, 6, dtype=DOUBLE)
    jacobian = dense_jacobian(block, inputs)
    outer = jacobian @ jacobian.T
    n = len(outer)
    values = torch.linalg.svdvals(jacobian)
    kept = values[values > 1e-12 * values[0]]
    (row,) = condition_report(block, inputs)
    assert (row.name, row.inputs, row.outputs, row.cutoff, row.rank) == ("0 … 2", 216, 144, 1e-12, len(kept))
    eye = torch.eye(n, dtype=DOUBLE)
    assert row.left == pytest.approx(float((eye - outer).square().sum() / n))
    # No step size is better than the best one.
    step = float(outer.trace() / outer.square().sum())
    for factor in (0.9, 1.0, 1.1):
        left = float((eye - factor * step * outer).square().sum() / n)
        assert left == pytest.approx(row.best_left) if factor == 1 else left > row.best_left
    assert row.largest == pytest.approx(float(values[0] ** 2))
    assert row.mean == pytest.approx(float(outer.trace()) / 216)
    assert row.effective_rank == pytest.approx(float(outer.trace() ** 2 / outer.square().sum()))
    assert row.condition == pytest.approx(float(kept[0] / kept[-1]))


def test_large_blocks_are_estimated() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(layer(gaussian(600, 700, 2.0).float()), nn.ReLU())
    inputs = torch.randn(1, 700)
    (row,) = condition_report(block, inputs)
    jacobian = dense_jacobian(block, inputs).double()
    values = torch.linalg.eigvalsh(jacobian @ jacobian.T)
    assert row.left == pytest.approx(float((1 - values).square().mean()), rel=0.1)
    assert row.largest == pytest.approx(float(values[-1]), rel=0.02)
    assert row.mean == pytest.approx(float(values.sum() / 700), rel=0.1)
    assert row.effective_rank == pytest.approx(float(values.sum() ** 2 / values.square().sum()), rel=0.1)
    assert (row.condition, row.cutoff, row.rank) == (None, None, None)
    assert condition_report(block, inputs) == (row,) != condition_report(block, inputs, seed=1)


def test_the_table() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*mixed_blocks())
    nn.init.normal_(model[7].weight)
    images = torch.randn(4, 3, 8, 8)
    before = picture(model)
    report = condition_report(model, images)
    assert picture(model) == before
    assert [row.name for row in report] == ["0", "1", "2", "3.0 … 4.1", "4.2 … 4.4", "4.2 … 6", "7"]
    header, *lines = repr(report).splitlines()
    assert header.split() == [
        *("name", "inputs", "outputs", "left", "best_left", "largest", "mean", "effective_rank"),
        *("condition", "cutoff", "rank", "marks"),
    ]
    assert len(lines) == 7 and lines[0].startswith("0 ")
    assert lines[-1].endswith("one step makes the match worse") and "1e-05" in lines[-1]
    assert report.to_dicts()[0]["inputs"] == 4 * 3 * 64
    assert repr(ConditionReport()) == ConditionReport()._repr_html_() == "no blocks"
    first = "<td>" + "</td><td>".join(lines[0].split())
    assert report._repr_html_().splitlines()[2].startswith(f"<tr>{first}</td>")
    only = condition_report(model, images, ["7"])
    assert [row.name for row in only] == ["7"] and only[0] == report[-1]


class Nothing(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return 0 * inputs


def test_a_block_that_passes_nothing() -> None:
    (row,) = condition_report(Nothing(), torch.ones(2, 3))
    assert (row.left, row.best_left, row.largest, row.effective_rank, row.rank) == (1, 1, 0, 0, 0)
    assert row.condition is not None and math.isnan(row.condition)


def network() -> nn.Sequential:
    """A convolution with batch normalization, a residual block, which is large, and a head."""
    torch.manual_seed(0)
    branch = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8))
    return nn.Sequential(first, Skip(branch), nn.Flatten(), nn.Linear(128, 5))


def short_report(model: nn.Module, images: Tensor, blocks: list[str] | None = None) -> ConditionReport:
    return condition_report(model, images, blocks, probes=1, steps=2)


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@pytest.mark.parametrize("context", [autocast, torch.no_grad])
def test_autocast_and_gradients_that_are_off_change_nothing(
    context: Callable[[], AbstractContextManager[None]],
) -> None:
    model, images = network(), torch.randn(6, 1, 4, 4)
    wanted = short_report(model, images)
    hessian = local_hessian(model, images, block="1").trace(1)
    with context():
        assert short_report(model, images) == wanted
        assert local_hessian(model, images, block="1").trace(1) == hessian


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself, at the first torch.compile
@pytest.mark.parametrize("wrap", [nn.DataParallel, pytest.param(torch.compile, marks=pytest.mark.nightly)])
def test_a_network_inside_a_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, images = network(), torch.randn(6, 1, 4, 4)
    wanted = short_report(model, images)
    assert short_report(wrap(model), images) == wanted
    assert short_report(wrap(model), images, ["1"])[0].left == wanted[1].left
    assert local_hessian(wrap(model), images, "1.weight", block="0").shape == (8, 8)
    model[1] = wrap(model[1])
    assert [row.left for row in short_report(model, images)] == [row.left for row in wanted]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("large", [False, True])
def test_16_bits_are_refused(dtype: torch.dtype, large: bool) -> None:
    model, images = network().to(dtype), torch.randn(6, 1, 4, 4, dtype=dtype)
    with pytest.raises(TypeError, match=rf"block '{int(large)}': input: got {dtype}, too coarse .* model\.float\(\)"):
        condition_report(model, images, [str(int(large))])


class Position(nn.Module):
    """A learned position, which takes of its input the shape alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.table[: inputs.shape[1]]


class Positioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position, self.head = Position(), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.head(inputs + self.position(inputs))
        return output


def test_a_block_that_does_not_depend_on_its_input_has_no_row() -> None:
    torch.manual_seed(0)
    model, inputs = Positioned(), torch.randn(2, 3, 4)
    assert [row.name for row in condition_report(model, inputs)] == ["head"]
    with pytest.raises(ValueError, match=r"^block 'position': its output does not depend on its input, want a block"):
        condition_report(model, inputs, ["position"])


class Once(torch.autograd.Function):
    """Can be differentiated once."""

    @staticmethod
    def forward(context: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, slope: Tensor) -> Tensor:
        return slope


class Layer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [(Once.apply, RuntimeError, "once_differentiable"), (lambda z: z / 0, ValueError, "its output is not finite")],
)
def test_errors_name_the_block(function: Callable[[Tensor], Tensor], error: type[Exception], message: str) -> None:
    model = nn.Sequential(nn.Linear(30, 30), Skip(Layer(function)))
    with pytest.raises(error, match=f"^block '1': .*{message}"):
        condition_report(model, torch.ones(20, 30))
