"""The local Hessian as an operator: against dense matrices by torch, and the paper's formulas (8)-(18)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sasgd_fused.local import back_matching, capture, local_hessian, spectral_density, still
from tests.local.networks import Skip, dense_jacobian, mixed_blocks, picture, relative

DOUBLE = torch.float64


def curved() -> tuple[nn.Module, Tensor, Tensor]:
    """A block with a second derivative, its input, and a displacement of its output."""
    torch.manual_seed(0)
    block = Skip(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), nn.Conv2d(3, 2, 3, padding=1))).double()
    return block, torch.randn(2, 2, 4, 4, dtype=DOUBLE), torch.randn(2, 2, 4, 4, dtype=DOUBLE)


def loss_by(
    block: nn.Module, inputs: Tensor, name: str, displacement: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The back-matching loss as the paper writes it, as a function of one thing, and where it is."""
    target = block(inputs).detach() + displacement
    if name == "input":
        return lambda point: (target - block(point)).square().sum() / 2, inputs
    return (
        lambda point: (target - torch.func.functional_call(block, {name: point}, (inputs,))).square().sum() / 2,
        block.get_parameter(name).detach(),
    )


@pytest.mark.parametrize("name", ["input", "branch.0.weight", "branch.0.bias", "branch.2.weight"])
def test_it_is_the_second_derivative_of_the_loss(name: str) -> None:
    block, inputs, displacement = curved()
    function, point = loss_by(block, inputs, name, displacement)
    wanted = torch.autograd.functional.hessian(function, point).reshape(point.numel(), -1)
    found = local_hessian(block, inputs, name, displacement=displacement)
    assert found.shape == wanted.shape and found.dtype == DOUBLE
    assert relative(found.dense(), wanted) < 1e-12
    gauss_newton = local_hessian(block, inputs, name).dense()
    if name != "branch.2.weight":  # which the output is linear in
        assert relative(gauss_newton, wanted) > 0.03
    assert torch.linalg.eigvalsh(gauss_newton).min() > -1e-12 * gauss_newton.abs().max()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["input", "0.weight"])
def test_blocks_with_batch_norm_and_dropout(name: str, training: bool) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.MaxPool2d(2)),
    )
    block.double().train(training)
    inputs = torch.randn(3, 2, 4, 4, dtype=DOUBLE)

    def function(point: Tensor) -> Tensor:
        values = {} if name == "input" else {name: point}
        output: Tensor = torch.func.functional_call(block, values, (point if name == "input" else inputs,))
        return output

    with still(block):
        jacobian = dense_jacobian(function, inputs if name == "input" else block[0].weight)
    operator = local_hessian(block, inputs, name)
    found = operator.dense()
    assert relative(found, jacobian.T @ jacobian) < 1e-12
    assert relative(found, found.T) < 1e-12
    assert relative(operator.jacobian.dense(), jacobian) < 1e-12


def test_attention_and_recurrence() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True).double()
    lstm = nn.LSTM(4, 3, batch_first=True).double()
    inputs, displacement = torch.randn(2, 3, 4, dtype=DOUBLE), torch.randn(2, 3, 4, dtype=DOUBLE)
    with still(layer), sdpa_kernel([SDPBackend.MATH]):
        function, point = loss_by(layer, inputs, "input", displacement)
        wanted = torch.autograd.functional.hessian(function, point).reshape(24, 24)
    assert relative(local_hessian(layer, inputs, displacement=displacement).dense(), wanted) < 1e-12
    jacobian = torch.autograd.functional.jacobian(
        lambda weight: torch.func.functional_call(lstm, {"weight_hh_l0": weight}, (inputs,))[0],
        lstm.weight_hh_l0.detach(),
    ).reshape(18, -1)
    assert relative(local_hessian(lstm, inputs, "weight_hh_l0").dense(), jacobian.T @ jacobian) < 1e-12


def test_a_fully_connected_layer() -> None:
    """Equations (8) and (9), and the bias."""
    torch.manual_seed(0)
    layer, inputs = nn.Linear(5, 3).double(), torch.randn(4, 5, dtype=DOUBLE)
    weight = layer.weight.detach()
    assert relative(local_hessian(layer, inputs).dense(), torch.block_diag(*[weight.T @ weight] * 4)) < 1e-14
    assert (
        relative(local_hessian(layer, inputs, layer.weight).dense(), torch.block_diag(*[inputs.T @ inputs] * 3)) < 1e-14
    )
    assert torch.equal(local_hessian(layer, inputs, "bias").dense(), 4 * torch.eye(3, dtype=DOUBLE))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution(groups: int) -> None:
    """H_W is a block of sums over patches for each output channel; H_z is TᵀT for each sample."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=groups).double()
    inputs = torch.randn(3, 4, 5, 5, dtype=DOUBLE)
    patches = F.unfold(inputs, 3, padding=1).transpose(1, 2).reshape(3 * 25, groups, -1)  # channels are outermost
    grams = [of_group.T @ of_group for of_group in patches.unbind(1)]
    wanted = torch.block_diag(*(gram for gram in grams for _ in range(6 // groups)))
    assert relative(local_hessian(layer, inputs, "weight").dense(), wanted) < 1e-12
    assert relative(local_hessian(layer, inputs, "bias").dense(), 75 * torch.eye(6, dtype=DOUBLE)) < 1e-14
    toeplitz = dense_jacobian(lambda one: layer(one) - layer(torch.zeros_like(one)), inputs[:1])
    assert relative(local_hessian(layer, inputs).dense(), torch.block_diag(*[toeplitz.T @ toeplitz] * 3)) < 1e-12


def test_a_skip_connection_changes_nothing_for_the_weights() -> None:
    """Equation (14), with the same displacement."""
    block, inputs, displacement = curved()
    for name in ("0.weight", "2.weight"):
        alone = local_hessian(block.branch, inputs, name, displacement=displacement).dense()
        found = local_hessian(block, inputs, f"branch.{name}", displacement=displacement).dense()
        assert relative(found, alone) < 1e-14
    branch = dense_jacobian(block.branch, inputs)
    both = torch.eye(64, dtype=DOUBLE) + branch
    assert relative(local_hessian(block, inputs).dense(), both.T @ both) < 1e-12


def normalized(rows: int, columns: int, batch: int, eps: float = 1e-30) -> tuple[nn.Module, Tensor]:
    """A linear layer with batch normalization, and inputs as behind a ReLU."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(columns, rows, bias=False), nn.BatchNorm1d(rows, eps=eps, affine=False)).double()
    return block, torch.randn(batch, columns, dtype=DOUBLE).relu()


def test_the_weights_in_front_of_batch_norm() -> None:
    """H_w is centred: (18), which is not, is far from it."""
    block, inputs = normalized(1, 12, 96)
    row = block[0].weight.detach()[0]
    covariance = inputs.T.cov(correction=0)
    variance = row @ covariance @ row
    wanted = 96 / variance * (covariance - torch.outer(covariance @ row, covariance @ row) / variance)
    found = local_hessian(block, inputs, "0.weight").dense()
    assert relative(found, wanted) < 1e-11
    assert (found @ row).abs().max() < 1e-11 * found.abs().max()  # its length has no effect
    printed = inputs.T @ inputs / variance
    assert torch.linalg.matrix_norm(printed - found) > 0.8 * torch.linalg.matrix_norm(found)
    assert torch.linalg.eigvalsh(printed)[-1] > 2 * torch.linalg.eigvalsh(found)[-1]


@pytest.mark.parametrize("batch", [96, 192])
def test_the_input_in_front_of_batch_norm(batch: int) -> None:
    """Equation (17) holds for the mean over the samples, but for 2/m."""
    block, inputs = normalized(10, 12, batch)
    weight = block[0].weight.detach()
    printed = weight.T @ (weight / (inputs @ weight.T).var(0, correction=0).unsqueeze(1))
    operator = local_hessian(block, inputs)
    jacobian = operator.jacobian.dense().reshape(batch * 10, batch, 12)
    found = torch.einsum("osi,osj->ij", jacobian, jacobian) / batch
    assert relative(found, (1 - 2 / batch) * printed) < 1e-3
    assert relative(found, printed) > 1 / batch


def test_the_length_of_weights_in_front_of_batch_norm_changes_nothing() -> None:
    """Remark 2, which is exact where eps is nothing."""
    spectra = {}
    for eps in (1e-30, 1e-5):
        for factor in (1.0, 10.0, 1e-3):
            block, inputs = normalized(6, 8, 16, eps)
            with torch.no_grad():
                block[0].weight *= factor
            spectra[eps, factor] = torch.linalg.eigvalsh(local_hessian(block, inputs).dense())
    assert max(relative(spectra[1e-30, factor], spectra[1e-30, 1.0]) for factor in (10.0, 1e-3)) < 1e-12
    assert relative(spectra[1e-5, 1e-3], spectra[1e-5, 1.0]) > 0.2


def test_a_bias_in_front_of_batch_norm() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    inputs = torch.randn(16, 4, dtype=DOUBLE)
    displacement = torch.randn(16, 3, dtype=DOUBLE)
    assert local_hessian(block, inputs, "0.bias", displacement=displacement).dense().abs().max() < 1e-13
    gradient = back_matching([block], inputs, lambda output: (output * displacement).sum()).gradients
    assert gradient[block[0].bias].abs().max() < 1e-13 < gradient[block[0].weight].abs().max()


def test_estimates_and_ends_of_the_spectrum() -> None:
    block, inputs, displacement = curved()
    inputs, displacement = (torch.cat([tensor, tensor + 1]) for tensor in (inputs, displacement))
    operator = local_hessian(block, inputs, displacement=displacement)
    dense = operator.dense()
    values = torch.linalg.eigvalsh(dense)
    assert operator.shape == (128, 128)
    assert operator.trace(400) == pytest.approx(
        float(dense.trace()), rel=4 * math.sqrt(2 / 400) * float(dense.norm() / dense.trace())
    )
    diagonal = operator.diagonal(400)
    assert diagonal.shape == inputs.shape
    assert (diagonal.flatten() - dense.diag()).norm() < 0.15 * dense.diag().norm()
    assert operator.trace() == operator.trace(seed=0) != operator.trace(seed=1)
    assert relative(operator.largest(3), values.flip(0)[:3]) < 1e-10
    assert relative(operator.smallest(2), values[:2]) < 1e-10
    small = local_hessian(nn.Linear(3, 3).double(), torch.randn(1, 3, dtype=DOUBLE))
    assert torch.equal(small.largest(3), small.smallest(3).flip(0))


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    operator = local_hessian(nn.Linear(100, 3), torch.ones(1, 100))
    assert operator.trace() > 0
    with pytest.raises(ImportError, match=r"largest and smallest need scipy: pip install scipy"):
        operator.largest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(80, 40).to(dtype), torch.randn(1, 80).to(dtype)
    operator = local_hessian(layer, inputs)
    wanted = torch.linalg.matrix_norm(layer.weight.detach().double(), 2).square()
    assert operator.dtype == dtype and float(operator.largest()) == pytest.approx(float(wanted), rel=0.05)
    with pytest.raises(TypeError, match=rf"op: got {dtype}, too coarse .*, want float32 or float64: model\.float\(\)"):
        spectral_density(operator, 1, 20)


def test_products() -> None:
    block, inputs, _ = curved()
    operator = local_hessian(block, inputs)
    dense, vectors = operator.dense(), torch.randn(64, 3, dtype=DOUBLE)
    assert relative(operator @ vectors, dense @ vectors) < 1e-12
    assert relative(operator @ vectors[:, 0], dense @ vectors[:, 0]) < 1e-12
    product = operator.matvec(vectors[:, 0].reshape(inputs.shape))
    assert product.shape == inputs.shape and relative(product.flatten(), dense @ vectors[:, 0]) < 1e-12
    assert relative(torch.from_numpy(operator.to_scipy() @ vectors.numpy()), dense @ vectors) < 1e-12
    with pytest.raises(ValueError, match="limit: got 63, want at least the 64 rows"):
        operator.dense(limit=63)
    with pytest.raises(ValueError, match=r"vector: got \(63,\), want 64 elements"):
        operator @ vectors[1:, 0]
    for k in (0, 65, 1.5):
        with pytest.raises(ValueError, match=f"k: got {k}, want an integer from 1 to 64"):
            operator.largest(k)


def test_products_are_those_of_the_weights_then() -> None:
    layer = nn.Linear(3, 2)
    operator = local_hessian(layer, torch.randn(1, 3))
    operator @ torch.ones(3)
    with torch.no_grad():
        layer.weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        operator @ torch.ones(3)


def test_a_block_inside_a_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*mixed_blocks()).double()
    images = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    before = picture(model)
    call = capture(model, images, ["3.0"])["3.0"]
    for wrt in ("input", "weight", model[3][0].weight):
        inside = local_hessian(model, images, wrt, block="3.0")
        alone = local_hessian(model[3][0], call.inputs, wrt)
        assert torch.equal(inside.diagonal(1), alone.diagonal(1))
    assert picture(model) == before


class Masked(nn.Module):
    """Is called with more than a tensor, and returns more than one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, mask: Tensor, *, hidden: Tensor) -> tuple[Tensor, None]:
        return self.inner(hidden) * mask, None


def test_a_block_with_other_arguments() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.masked = Masked()

        def forward(self, inputs: Tensor) -> Tensor:
            output: Tensor = self.masked(torch.tensor([1, 0, 1]), hidden=inputs)[0]
            return output

    model = Model()
    found = local_hessian(model, torch.ones(2, 3), "inner.bias", block="masked")
    assert torch.equal(found.dense(), torch.tensor([2.0, 0.0, 2.0]).diag())


def test_tied_and_frozen_weights_and_integers() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Embedding(5, 5), nn.Tanh(), nn.Linear(5, 5, bias=False)).double()
    block[2].weight = block[0].weight
    block.requires_grad_(False)
    tokens = torch.tensor([1, 3])

    def function(weight: Tensor) -> Tensor:
        return F.embedding(tokens, weight).tanh() @ weight.T

    jacobian = dense_jacobian(function, block[0].weight)
    for wrt in ("0.weight", "2.weight", block[0].weight):
        assert relative(local_hessian(block, tokens, wrt).dense(), jacobian.T @ jacobian) < 1e-12
    assert not block[0].weight.requires_grad
    with pytest.raises(TypeError, match=r"inputs: got torch\.int64, want floating numbers, or wrt= a parameter"):
        local_hessian(block, tokens)


@pytest.mark.parametrize("wrt", ["input", "3.0.weight"])
def test_nothing_is_changed(wrt: str) -> None:
    model = nn.Sequential(*mixed_blocks())
    images = torch.randn(2, 3, 6, 6)
    model(images).sum().backward()
    model[0].weight.requires_grad_(False)
    before, pixels = picture(model), images.clone()
    operator = local_hessian(model, images, wrt)
    operator.trace(2), operator.diagonal(2), operator.largest()
    assert picture(model) == before and torch.equal(images, pixels) and not images.requires_grad
    for block in (None, "3"):  # four channels are an error in the first block
        with pytest.raises(RuntimeError):
            local_hessian(model, torch.ones(2, 4, 6, 6), "input" if block else wrt, block=block)
    assert picture(model) == before


class Rounded(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.round().long()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: local_hessian(nn.Linear(2, 3), torch.ones(1, 2), "w"),
            ValueError,
            "wrt: got 'w', want 'input' or a parameter of Linear: weight, bias",
        ),
        (
            lambda: local_hessian(nn.Linear(2, 3), torch.ones(1, 2), nn.Parameter(torch.ones(2))),
            ValueError,
            "wrt: got a Parameter, want",
        ),
        (
            lambda: local_hessian(nn.Linear(2, 3), torch.ones(1, 2), displacement=torch.ones(2, 3)),
            ValueError,
            r"displacement: got \(\(2, 3\), torch.float32\), want \(\(1, 3\), torch.float32\)",
        ),
        (
            lambda: local_hessian(nn.Linear(2, 3), [torch.ones(1, 2)]),
            TypeError,
            "inputs: got list, want a tensor, or the network's inputs with block=",
        ),
        (
            lambda: local_hessian(nn.Linear(2, 3), torch.ones(1, 2), block="x"),
            ValueError,
            "blocks: got 'x', want names of modules of Linear",
        ),
        (lambda: local_hessian(nn.MultiheadAttention(2, 1), torch.ones(1, 2)), TypeError, "missing"),
        (
            lambda: local_hessian(nn.AdaptiveMaxPool1d(2), torch.ones(2, 4), "weight"),
            ValueError,
            "wrt: got 'weight', want 'input' or a parameter of AdaptiveMaxPool1d",
        ),
        (
            lambda: local_hessian(Rounded(), torch.ones(2, 1, 2)),
            TypeError,
            "Rounded: got torch.int64 as its output, want a floating tensor, or a tuple with one",
        ),
        (
            lambda: local_hessian(
                nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False)).requires_grad_(False),
                torch.ones(1, 2),
                "unused",
            ),
            ValueError,
            "wrt",
        ),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_what_the_output_does_not_depend_on() -> None:
    block = nn.Linear(2, 2)
    block.unused = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="wrt: got 'unused', on which the output of Linear does not depend"):
        local_hessian(block, torch.ones(1, 2), "unused")


@pytest.mark.filterwarnings("ignore")  # what its imports say
def test_curvlinops_has_the_same() -> None:
    """An independent implementation, where it is installed."""
    curvlinops = pytest.importorskip("curvlinops")
    block, inputs, displacement = curved()
    params = dict(block.named_parameters())
    data = [(inputs, block(inputs).detach() + displacement)]
    loss = nn.MSELoss(reduction="sum")
    vector = torch.randn(params["branch.0.weight"].numel(), dtype=DOUBLE)
    for theirs, mine in (
        (curvlinops.GGNLinearOperator, local_hessian(block, inputs, "branch.0.weight")),
        (curvlinops.HessianLinearOperator, local_hessian(block, inputs, "branch.0.weight", displacement=displacement)),
    ):
        for param in block.parameters():
            param.requires_grad_(param is params["branch.0.weight"])
        wanted = theirs(block, loss, [params["branch.0.weight"]], data) @ vector / 2
        assert relative(mine @ vector, wanted) < 1e-12
