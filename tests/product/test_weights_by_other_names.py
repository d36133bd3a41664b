"""A layer's weight is amended, with the layer's rows and columns, under whatever name it stands."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import cpu_only

pytestmark = pytest.mark.usefixtures("default_device")

Matrices = list[tuple[str, int, int]]


def amended(model: nn.Module) -> Matrices:
    groups = [group for group in parameter_groups(model) if group["amend"]]
    return [
        (name, rows, columns)
        for group in groups
        for (name, _), rows, columns in zip(group["params"], group["rows"], group["columns"], strict=True)
    ]


def pruned(module: nn.Module, name: str = "weight") -> nn.Module:
    return prune.random_unstructured(module, name, 0.5)  # type: ignore[no-any-return]


def pruned_twice(module: nn.Module) -> nn.Module:
    return pruned(pruned(module))


def pruned_spectral_norm(module: nn.Module) -> nn.Module:
    return pruned(nn.utils.spectral_norm(module), "weight_orig")


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*deprecated")
@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (pruned, "weight_orig"),
        (pruned_twice, "weight_orig"),
        (nn.utils.spectral_norm, "weight_orig"),
        (pruned_spectral_norm, "weight_orig_orig"),
        (parametrizations.spectral_norm, "parametrizations.weight.original"),
        (parametrizations.orthogonal, "parametrizations.weight.original"),
    ],
)
def test_a_parametrized_weight_is_the_layers(wrap: Callable[[nn.Module], nn.Module], name: str) -> None:
    """Also where only the last layer is: otherwise the last hidden one would be the head."""
    assert amended(nn.Sequential(nn.Linear(6, 8), wrap(nn.Linear(8, 3)))) == [("0.weight", 8, 6), (f"1.{name}", 3, 8)]
    convolutions = nn.Sequential(
        wrap(nn.Conv2d(4, 8, 3, groups=2)), wrap(nn.ConvTranspose2d(8, 6, 2, groups=2)), wrap(nn.Conv1d(6, 2, 1))
    )
    assert amended(convolutions) == [(f"0.{name}", 8, 4), (f"1.{name}", 6, 8), (f"2.{name}", 2, 6)]


def test_the_parametrized_head_is_the_head() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), parametrizations.spectral_norm(nn.Linear(8, 3)))
    rows = ScaleAmendedSGD(parameter_groups(model), head="plain").layer_report()
    assert [row.scaled for row in rows] == [True, True, False]
    assert [row.backward_factor for row in rows] == [3 / 8, 3 / 8, 1]


def test_a_parametrized_weight_is_not_evaluated() -> None:
    """Spectral norm takes a step of its power iteration whenever the weight is read."""
    model = parametrizations.spectral_norm(nn.Linear(4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameter_groups(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_attention_has_its_projections_amended() -> None:
    assert amended(nn.MultiheadAttention(8, 2)) == [("in_proj_weight", 24, 8), ("out_proj.weight", 8, 8)]
    assert amended(nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True)) == [
        *(("q_proj_weight", 8, 8), ("k_proj_weight", 8, 4), ("v_proj_weight", 8, 6), ("out_proj.weight", 8, 8))
    ]
    cut = nn.MultiheadAttention(8, 2)
    pruned(cut, "in_proj_weight")
    pruned(cut.out_proj)
    assert amended(cut) == [("in_proj_weight_orig", 24, 8), ("out_proj.weight_orig", 8, 8)]
    normed = parametrizations.spectral_norm(nn.MultiheadAttention(8, 2), "in_proj_weight")
    assert amended(normed)[0] == ("parametrizations.in_proj_weight.original", 24, 8)


class Scaled(nn.Linear):
    """A layer of somebody's own, which has another name in a script."""


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.ReLU(), nn.Flatten()),
        *(Scaled(6 * 9, 7), nn.LayerNorm(7), nn.Linear(7, 3)),
    )


IMAGE = (torch.ones(1, 4, 4, 4),)
NETWORK = [("0.weight", 8, 4), ("1.weight", 6, 8), ("4.weight", 7, 54), ("6.weight", 3, 7)]


@cpu_only("scripts and graphs know no device")
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*isinstance.treespec")
@pytest.mark.parametrize(
    "convert",
    [
        torch.jit.script,
        lambda model: torch.jit.trace(model, IMAGE),
        lambda model: torch.export.export(model, IMAGE).module(),
        lambda model: torch.fx.symbolic_trace(model),
    ],
    ids=["script", "trace", "export", "fx"],
)
def test_a_converted_network_keeps_its_matrices(convert: Callable[[nn.Module], nn.Module]) -> None:
    assert amended(convert(network())) == NETWORK


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.layer(self.embedding(tokens)))
        return output


@cpu_only("scripts and graphs know no device")
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*isinstance.treespec")
@pytest.mark.parametrize("way", ["none", "script", "trace", "export"])
def test_a_converted_encoder_keeps_its_matrices(way: str) -> None:
    model: nn.Module = Encoder()
    tokens = (torch.zeros(2, 3, dtype=torch.long),)
    if way == "script":
        model = torch.jit.script(model)
    elif way == "trace":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the data-dependent branches of attention
            model = torch.jit.trace(model, tokens, check_trace=False)
    elif way == "export":
        model = torch.export.export(model, tokens).module()
    assert amended(model) == [
        *(("layer.self_attn.in_proj_weight", 24, 8), ("layer.self_attn.out_proj.weight", 8, 8)),
        *(("layer.linear1.weight", 16, 8), ("layer.linear2.weight", 8, 16), ("head.weight", 5, 8)),
    ]


class Custom(nn.Module):
    def __init__(self, shape: tuple[int, ...], **sizes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        vars(self).update(sizes)


@pytest.mark.parametrize(
    ("module", "matrix"),
    [
        (Custom((3, 2), out_features=3, in_features=2), (3, 2)),
        (Custom((2, 3), out_features=3, in_features=2), (3, 2)),
        (Custom((6, 2, 5, 5), out_channels=6, in_channels=4, groups=2), (6, 4)),
        (parametrizations.spectral_norm(Custom((3, 2), out_features=3, in_features=2)), (3, 2)),
    ],
)
def test_a_module_that_names_its_sizes_is_a_layer(module: nn.Module, matrix: tuple[int, int]) -> None:
    assert [tuple(sizes) for _, *sizes in amended(module)] == [matrix]


def test_a_weight_that_was_cut_has_its_own_rows() -> None:
    """The layer's attributes are only what it was made with."""
    layer = nn.Linear(6, 8)
    layer.weight = nn.Parameter(torch.ones(5, 6))
    assert amended(layer) == [("weight", 5, 6)]


def test_a_lazy_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"model: got the uninitialized parameter 0\.weight, want a model that has"):
        parameter_groups(nn.Sequential(nn.LazyLinear(3)))


class Conv1D(nn.Module):
    """As in transformers: its weight is the transpose of a linear layer's."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.ones(nx, nf))


def test_the_linear_layer_of_gpt_2() -> None:
    groups = parameter_groups(nn.Sequential(Conv1D(12, 4), nn.Linear(12, 3)))
    assert (groups[-1]["rows"], groups[-1]["columns"]) == ([12, 3], [4, 12])
