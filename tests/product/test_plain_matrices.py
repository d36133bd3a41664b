"""Weights of layers that take the plain SGD step are told of, in a warning and in the groups' summary."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.nn.utils import parametrizations

from sasgd_fused import parameter_groups

pytestmark = pytest.mark.usefixtures("default_device")


class Loose(nn.Module):
    """Holds parameters of which nothing but their shapes is known."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, Parameter(torch.ones(shape)))


def flattened() -> nn.Module:
    """As FSDP1 makes it."""
    flat = Parameter(torch.ones(40))
    flat._is_flat_param = True  # type: ignore[attr-defined]
    model = Loose()
    model.register_parameter("_flat_param", flat)
    return model


def sharded(elements: int) -> nn.Module:
    """As FSDP1 with use_orig_params, and ZeRO-3, leave a layer on a rank."""
    layer = nn.Linear(8, 5)
    layer.weight = Parameter(torch.ones(elements))
    return layer


def of_two_factors(module: nn.Module) -> nn.Module:
    """With a weight that is the product of two smaller tensors."""

    class Product(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left @ right

        def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return weight[:, :2].clone(), weight[:2].clone()

    nn.utils.parametrize.register_parametrization(module, "weight", Product())
    return module


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.utils.weight_norm(nn.Linear(8, 5)), r"1 parametrized .*weight_norm\) \(1\.weight_v\)"),
        (lambda: nn.utils.weight_norm(nn.Linear(8, 1)), r"1 parametrized .*weight_norm\) \(1\.weight_v\)"),
        (lambda: parametrizations.weight_norm(nn.Conv1d(8, 5, 1)), r"weight_norm\) \(1\.param.*\.original1\)"),
        (lambda: of_two_factors(nn.Linear(8, 5)), r"1 parametrized otherwise .* \(1\.param.*\.original1\)"),
        (flattened, r"1 flattened by FSDP1 \(1\._flat_param\)"),
        (lambda: sharded(7), r"1 in a shape that is not the layer's .* \(1\.weight\)"),
        (lambda: sharded(0), r"1 in a shape that is not the layer's .* \(1\.weight\)"),
        (lambda: nn.LSTM(8, 2), r"2 recurrent \(1\.weight_ih_l0, 1\.weight_hh_l0\)"),
        (lambda: nn.GRUCell(8, 2), r"2 recurrent"),
        (lambda: nn.Bilinear(8, 8, 2), r"1 of nn\.Bilinear"),
    ],
)
def test_a_layers_weight_that_is_plain_is_always_warned_of(make: Callable[[], nn.Module], text: str) -> None:
    model = nn.Sequential(nn.Linear(200, 200), make())
    with pytest.warns(UserWarning, match=rf"^model: got .* that take the plain SGD step: .*{text}") as caught:
        parameter_groups(model)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameter_groups(model.requires_grad_(False))  # frozen


def test_one_warning_tells_all_by_their_reasons() -> None:
    model = nn.Sequential(nn.Linear(8, 8), *(nn.RNN(8, 8) for _ in range(3)), nn.Bilinear(8, 8, 8))
    with pytest.warns(UserWarning) as caught:
        parameter_groups(model)
    (warning,) = caught
    assert str(warning.message).startswith(
        "model: got 7 matrices of 896 elements that take the plain SGD step: "
        "6 recurrent (1.weight_ih_l0, 1.weight_hh_l0, 4 more); 1 of nn.Bilinear (4.weight); "
        "so that 0.weight counts as the head. Want "
    )


def test_loose_matrices_are_warned_of_if_they_are_large() -> None:
    """Among matrices that are trained."""
    layer = nn.Linear(100, 99)
    model = nn.Sequential(Loose(table=(11, 9), bias=(90, 90)), layer)
    parameter_groups(model)
    for frozen, shape in ((False, (11, 10)), (True, (2, 2))):
        layer.requires_grad_(not frozen)
        model[0].table = Parameter(torch.ones(shape))
        with pytest.warns(UserWarning, match=r"1 of modules whose type does not tell rows and columns \(0\.table\)"):
            parameter_groups(model)


def test_a_model_without_any_layer_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"model: got 2 matrices of 10 elements that take the plain SGD step"):
        parameter_groups(Loose(first=(2, 3), second=(2, 2), vector=(9, 1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Embedding(90, 8), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.LayerNorm([8, 8]), nn.Linear(8, 3)),
        lambda: nn.Sequential(
            Loose(token=(1, 1, 8), position=(1, 50, 8), gamma=(8, 1, 1), weight=(8,)), nn.Linear(8, 3)
        ),
        lambda: nn.Sequential(
            Loose(relative_position_bias_table=(30, 8), positional_embedding=(30, 8)), nn.Linear(8, 3)
        ),
        lambda: nn.Linear(0, 3),
        lambda: nn.Embedding(90, 8),
    ],
    ids=["embedding", "normalization", "vectors", "by name", "empty", "embedding alone"],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_is_plain_by_design_is_not_warned_of(make: Callable[[], nn.Module]) -> None:
    parameter_groups(make())  # warnings are errors


def test_the_summary_tells_what_is_amended_and_what_is_not() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), Loose(position=(1, 4, 8)), nn.Linear(8, 1200), nn.Linear(1200, 3))
    groups = parameter_groups(model)
    assert groups.summary.splitlines() == [
        "amended: 2 matrices of 13,200 elements",
        "  head: 3.weight, 3 rows, 1200 columns",
        "plain: 2 matrices of 104 elements, and 2 vectors",
        "  0.weight (9, 8): an embedding",
        "  1.position (1, 4, 8): of leading dimension 1, as positions and class tokens are",
    ]
    assert repr(groups) == groups.summary
    assert repr(type(groups)()) == "[]"


def test_copies_and_files_keep_the_summary() -> None:
    groups = parameter_groups(nn.Linear(3, 2))
    for again in (copy.copy(groups), copy.deepcopy(groups), pickle.loads(pickle.dumps(groups))):
        assert isinstance(again, list)
        assert again.summary == groups.summary
        assert [group["amend"] for group in again] == [False, True]
