"""Backward factors that are measured at the output of a network."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from sasgd_fused.local import graph_factors, measured_factors, output_shares
from tests.local.networks import Skip, dense_jacobian, picture


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small() -> nn.Sequential:
    skip = Skip(nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)))
    return nn.Sequential(nn.Linear(4, 6), skip, nn.Tanh(), nn.Linear(6, 3))


class Tokens(nn.Module):
    """With a layer that takes the plain step, and one dimension more."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor, weights: Tensor | None = None) -> Tensor:
        hidden = torch.tanh(self.hidden(self.embedding(tokens)))
        output: Tensor = self.head((hidden if weights is None else hidden * weights[..., None]).mean(1))
        return output


def test_a_single_output_is_measured_exactly() -> None:
    """There v is a sign: t_b = ‖∂f/∂W_b‖² / elements, whatever the draw."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    inputs = torch.randn(1, 4)
    weights = [model[place].weight for place in (0, 2, 4)]
    gradients = torch.autograd.grad(model(inputs).sum(), weights)
    traces = [
        float(weight.detach().square().sum() * gradient.square().sum() / weight.numel())
        for weight, gradient in zip(weights, gradients, strict=True)
    ]
    shares = output_shares(model, inputs, probes=2)
    mean = (traces[0] * traces[1]) ** 0.5
    assert [row.share for row in shares] == pytest.approx([trace / mean for trace in traces], rel=1e-5)
    assert [row.error for row in shares] == pytest.approx([0, 0, 0], abs=1e-6)
    assert [row.is_head for row in shares] == [False, False, True]
    assert [(row.rows, row.columns, row.width_factor) for row in shares] == [(6, 4, 1 / 6), (5, 6, 1 / 5), (1, 5, 1)]
    assert [row.backward_factor for row in shares] == pytest.approx([row.share / row.rows for row in shares])


def test_shares_are_those_of_the_dense_jacobian() -> None:
    """E‖∂(vᵀf)/∂W‖² = ‖∂f/∂W‖², and `error` says how far from it a few probes are."""
    model, inputs = small(), torch.randn(5, 4)
    shares = output_shares(model, inputs, probes=100)
    exact = []
    for row in shares:
        module, weight = model.get_submodule(row.name.removesuffix(".weight")), model.get_parameter(row.name)

        def output(value: Tensor, module: nn.Module = module) -> Tensor:
            name = next(name for name, held in model.named_modules() if held is module)
            result: Tensor = torch.func.functional_call(model, {f"{name}.weight": value}, inputs)
            return result

        jacobian = dense_jacobian(output, weight)
        exact.append(float(weight.detach().square().sum() * jacobian.square().sum() / weight.numel()))
    mean = (exact[0] * exact[1]) ** 0.5
    for row, trace in zip(shares, exact, strict=True):
        assert row.error is not None
        assert 0.01 < row.error / row.share < 0.1
        assert abs(row.share - trace / mean) < 3 * row.error


def test_the_geometric_mean_of_hidden_shares_is_one() -> None:
    first, second, _ = output_shares(small(), torch.randn(5, 4))
    assert first.share * second.share == pytest.approx(1)
    (only,) = output_shares(nn.Linear(4, 3), torch.randn(5, 4))
    assert (only.share, only.backward_factor) == pytest.approx((1, 1))


def test_the_seed_decides() -> None:
    model, inputs = small(), torch.randn(5, 4)
    first = measured_factors(model, inputs)
    assert measured_factors(model, inputs) == first
    assert measured_factors(model, inputs, seed=1) != first


@pytest.mark.parametrize("find", [measured_factors, graph_factors])
def test_a_mapping_trains_and_comes_back_from_a_checkpoint(find: Callable[..., dict[str, float]]) -> None:
    model = Tokens()
    tokens, labels = torch.randint(7, (32, 5)), torch.randint(3, (32,))
    factors = find(model, tokens)

    def make(model: nn.Module) -> ScaleAmendedSGD:
        return ScaleAmendedSGD(parameter_groups(model), lr=0.1, momentum=0.9, factors=factors, backend="foreach")

    def train(model: nn.Module, optimizer: ScaleAmendedSGD) -> list[float]:
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = cross_entropy(model(tokens), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    optimizer = make(model)
    assert {row.name: row.backward_factor for row in optimizer.layer_report()} == factors
    losses = train(model, optimizer)
    assert losses[-1] < losses[0]
    other, file = copy.deepcopy(model), io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = make(other)
    resumed.load_state_dict(torch.load(file))
    assert train(other, resumed) == train(model, optimizer)
    named = ScaleAmendedSGD(model.named_parameters(), lr=0.1, factors=factors, backend="foreach")
    assert {row.name: row.backward_factor for row in named.layer_report()} == factors


def test_plain_layers_have_the_width_rules_entry() -> None:
    factors = measured_factors(Tokens(), torch.randint(7, (32, 5)))
    assert factors["embedding.weight"] == 3 / 7


def test_arguments_of_a_network() -> None:
    model, tokens, weights = Tokens(), torch.randint(7, (32, 5)), torch.rand(32, 5)
    expected = measured_factors(model, (tokens, weights))
    assert measured_factors(model, {"weights": weights, "tokens": tokens}) == expected
    assert measured_factors(model, tokens) != expected


def test_what_it_returns_is_picked() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"logits": self.body(inputs), "inputs": inputs}

    model, inputs = Several(), torch.randn(5, 4)
    expected = output_shares(model.body, inputs)
    shares = output_shares(model, inputs, output=lambda result: result["logits"])
    assert [row.share for row in shares] == [row.share for row in expected]
    with pytest.raises(TypeError, match=r"^model: its output is dict, want one floating tensor; `output=` picks it"):
        output_shares(model, inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself, at the first torch.compile
@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [(nn.DataParallel, "module."), pytest.param(torch.compile, "_orig_mod.", marks=pytest.mark.nightly)],
)
def test_names_are_those_of_the_model_that_is_given(wrap: Callable[[nn.Module], nn.Module], prefix: str) -> None:
    model, inputs = small(), torch.randn(5, 4)
    expected = measured_factors(model, inputs)
    assert measured_factors(wrap(model), inputs) == {prefix + name: factor for name, factor in expected.items()}


@pytest.mark.parametrize("find", [measured_factors, graph_factors])
def test_nothing_changes(find: Callable[..., Any]) -> None:
    """Flags of frozen weights, gradients, running statistics, dropout and generators; after an error too."""
    model = nn.Sequential(small(), nn.Dropout(), nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
    model.append(nn.Linear(8, 2))
    model[0][0].weight.requires_grad_(False)
    model[2].eval()
    inputs, misfit = torch.randn(5, 4), torch.randn(5, 3)
    model(inputs).sum().backward()
    before = picture(model)
    find(model, inputs)
    assert picture(model) == before
    with pytest.raises((RuntimeError, ValueError)):
        find(model, misfit)
    assert picture(model) == before


class Counting(nn.Module):
    """Writes into a buffer whenever it is called."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.add_(1)
        return inputs


@pytest.mark.parametrize("find", [measured_factors, graph_factors])
def test_buffers_that_the_network_writes_are_put_back(find: Callable[..., Any]) -> None:
    model = nn.Sequential(Counting(), small())
    find(model, torch.randn(5, 4))
    assert model[0].calls == 0


@pytest.mark.parametrize("find", [measured_factors, pytest.param(graph_factors, marks=pytest.mark.nightly)])
def test_dropout_is_off_and_batch_normalization_is_that_of_the_batch(find: Callable[..., Any]) -> None:
    norm, inputs = nn.BatchNorm1d(6), 10 * torch.randn(50, 4)
    layers = [nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)]
    with_dropout = nn.Sequential(*layers[:3], nn.Dropout(0.9), *layers[3:])
    expected = find(nn.Sequential(*layers), inputs)
    assert list(find(with_dropout, inputs).values()) == list(expected.values())
    norm.eval()
    assert find(nn.Sequential(*layers), inputs) != expected


def unused() -> nn.Module:
    model = Tokens()
    model.add_module("spare", nn.Linear(2, 2))
    return model


def zero() -> nn.Module:
    model = small()
    nn.init.zeros_(model[1].branch[2].weight)
    return model


class FullyShardedDataParallel(nn.Sequential):
    """Stands for torch's, which needs a process group."""


BATCH, TOKENS = torch.randn(5, 4), torch.randint(7, (5, 2))
ERRORS: list[tuple[Callable[[], nn.Module], Any, type[Exception], str]] = [
    (unused, TOKENS, ValueError, r"^model: got no gradient of its output for spare\.weight, want a path"),
    (zero, BATCH, ValueError, r"^model: 1\.branch\.2\.weight has the share 0, want .*given one sample: want several"),
    (lambda: nn.Sequential(small(), nn.Softmax(1)), None, TypeError, "^inputs: got NoneType, want a tensor"),
    (lambda: nn.BatchNorm1d(4), BATCH, ValueError, "^model: got BatchNorm1d without amended weights"),
    (nn.Tanh, BATCH, ValueError, "^model: got Tanh without parameters"),
    (lambda: FullyShardedDataParallel(small()), BATCH, ValueError, "^model: got Fully.* with sharded parameters, want"),
]


@pytest.mark.parametrize("find", [measured_factors, graph_factors])
@pytest.mark.parametrize(("make", "inputs", "error", "message"), ERRORS)
def test_errors(
    find: Callable[..., Any], make: Callable[[], nn.Module], inputs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        find(make(), inputs)


def test_a_share_that_is_not_finite() -> None:
    model = small()
    nn.init.constant_(model[3].weight, torch.inf)
    with pytest.raises(ValueError, match=r"^model: 0\.weight has the share (nan|inf), want .*; a weight, or a value"):
        measured_factors(model, BATCH)


@pytest.mark.parametrize("probes", [0, 1.5, True])
def test_probes_are_counted(probes: Any) -> None:
    with pytest.raises(ValueError, match=f"^probes: got {probes!r}, want a positive integer"):
        output_shares(small(), BATCH, probes=probes)


def test_an_output_without_gradient_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^model: got no gradient of its output for 0\.weight"):
        output_shares(small(), BATCH, output=Tensor.detach)


def test_one_probe_has_no_error() -> None:
    assert [row.error for row in output_shares(small(), BATCH, probes=1)] == [None] * 3


def test_it_prints_as_a_table() -> None:
    shares = output_shares(small(), BATCH)
    lines = repr(shares).splitlines()
    assert lines[0].split() == ["name", "rows", "columns", "share", "error", "backward_factor", "width_factor"]
    assert lines[1].split()[:3] == ["0.weight", "6", "4"]
    assert lines[3].split()[-2:] == ["1", "head"]
    assert len(lines) == 4
    assert shares._repr_html_().count("<tr>") == 4
