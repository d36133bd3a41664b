"""Wrong arguments of the constructor are refused with a message that names argument, what came and what is wanted."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import BACKENDS
from tests.helpers import DEVICE, message
from tests.kernels.emulated_cuda import EMULATED_CUDA

pytestmark = pytest.mark.usefixtures("default_device")

NAN, INF = float("nan"), float("inf")
ones = partial(torch.ones, device=DEVICE)  # for what is made before a test begins
FINITE = "want a finite number >= 0"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        *[({name: -0.1}, (f"{name}: got -0.1", FINITE)) for name in ("lr", "momentum", "weight_decay")],
        *[({name: NAN}, (f"{name}: got nan", FINITE)) for name in ("lr", "momentum", "weight_decay")],
        *[({name: INF}, (f"{name}: got inf", FINITE)) for name in ("lr", "momentum", "weight_decay")],
        ({"dampening": NAN}, ("dampening: got nan", "want a finite number")),
        ({"lr": torch.ones(2)}, ("lr: got a tensor of shape (2,)", "want one real element")),
        ({"lr": torch.tensor(-1.0)}, ("lr: got tensor(-1.)", FINITE)),
        ({"lr": torch.tensor(1j)}, ("lr: got a tensor of shape ()", "complex64", "want one real element")),
        ({"nesterov": True}, ("nesterov: got True with momentum=0", "want momentum > 0 and dampening = 0")),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ("nesterov: got True", "dampening=0.1", "want")),
        ({"differentiable": True}, ("differentiable: got True", "want False")),
        *[({"eps": eps}, (f"eps: got {eps!r}", "want a positive finite number")) for eps in (0, -1.0, NAN, INF, "1")],
        *[({"output_width": n}, (f"output_width: got {n!r}", "want a positive integer")) for n in (0, -3, 2.0, True)],
        ({"head": "none"}, ("head: got 'none'", "'amended', 'plain'")),
        ({"decay": None}, ("decay: got None", "'amended', 'shape'")),
        ({"norms": "frozen"}, ("norms: got 'frozen'", "'track', 'freeze'")),
        ({"factors": "depth"}, ("factors: got 'depth'", "'width', 'product'", "mapping")),
        ({"factors": 2.0}, ("factors: got 2.0", "'width', 'product'", "mapping")),
        ({"backend": "cuda"}, ("backend: got 'cuda'", "want None or one of", "'foreach'", "'reference'")),
        ({"foreach": True, "fused": True}, ("foreach, fused: got True for both", "want at most one")),
        ({"backend": "native", "foreach": True}, ("backend: got 'native'", "foreach=True", "mean 'foreach'")),
        ({"backend": "reference", "fused": True}, ("backend: got 'reference'", "fused=True", "mean 'native'")),
        ({"backend": "foreach", "foreach": False}, ("backend: got 'foreach'", "foreach=False", "leave")),
        ({"backend": "native", "fused": False}, ("backend: got 'native'", "fused=False", "leave")),
    ],
)
def test_bad_values(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=message(*parts)):
        ScaleAmendedSGD([Parameter(torch.ones(2, 2))], **options)


@pytest.mark.parametrize("name", ["lr", "momentum", "dampening", "weight_decay"])
@pytest.mark.parametrize("value", ["0.1", None, [0.1], 1j])
def test_hyperparameters_that_are_no_numbers(name: str, value: object) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=message(f"{name}: got {value!r}", "want a number")):
        ScaleAmendedSGD([Parameter(torch.ones(2, 2))], **options)


@pytest.mark.parametrize(
    ("factors", "parts"),
    [
        ({}, ("factors: the mapping has no entry for first", "want a backward factor for every layer")),
        ({"first": 1.0, "secnod": 1.0}, ("factors: the mapping has no entry for second",)),
        *[({"first": m, "second": 1.0}, (f"factors['first']: got {m!r}", "want a positive")) for m in (0, -1.0, NAN)],
        ({"first": "1", "second": 1.0}, ("factors['first']: got '1'", "want a positive finite number")),
    ],
)
def test_bad_factors(factors: dict[str, Any], parts: tuple[str, ...]) -> None:
    named = [("first", Parameter(torch.ones(2, 2))), ("bias", Parameter(torch.ones(2)))]
    with pytest.raises(ValueError, match=message(*parts)):
        ScaleAmendedSGD([*named, ("second", Parameter(torch.ones(2, 2)))], factors=factors)


@pytest.mark.parametrize(
    ("params", "error", "text"),
    [
        (Parameter(ones(2, 2)), TypeError, "iterable of Tensors or dicts"),
        ({Parameter(ones(2, 2))}, TypeError, "params: got a set, want an ordered collection"),
        (frozenset([Parameter(ones(2, 2))]), TypeError, "params: got a frozenset, want an ordered collection"),
        (nn.Linear(2, 2), TypeError, r"params: got a Linear, want parameters, as of parameter_groups\(model\)"),
        ([], ValueError, "empty parameter list"),
        ([("a", Parameter(ones(1))), Parameter(ones(1))], ValueError, "with/without names"),
    ],
)
def test_bad_params(params: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ScaleAmendedSGD(params)


def test_a_parameter_list_is_no_model() -> None:
    params = nn.ParameterList([ones(2, 2)])
    assert ScaleAmendedSGD(params).param_groups[0]["params"] == list(params)


def test_a_named_backend_that_cannot_run_says_why() -> None:
    params = [Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2, dtype=torch.float64))]
    with pytest.raises(RuntimeError, match=message(f"backend: cannot run on {DEVICE}", "'native'", "float64")):
        ScaleAmendedSGD(params, backend="native")
    with pytest.raises(RuntimeError, match=message("backend: cannot run on meta", "'native'", "no kernel for meta")):
        ScaleAmendedSGD([Parameter(torch.ones(2, 2, device="meta"))], fused=True)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"master_weights": 1}, TypeError, "^master_weights: got 1, want True or False"),
        (
            {"momentum_dtype": torch.float16},
            ValueError,
            "^momentum_dtype: got torch.float16, want torch.bfloat16 or None",
        ),
        ({"rounding": "up"}, ValueError, "^rounding: got 'up', want one of 'nearest', 'stochastic'"),
        ({"rounding_seed": 1.5}, TypeError, "^rounding_seed: got 1.5, want an integer"),
        ({"rounding_seed": True}, TypeError, "^rounding_seed: got True, want an integer"),
        ({"rounding": "stochastic"}, ValueError, "^rounding: got 'stochastic' for parameter 0 of group 0, .*float16"),
        (
            {"momentum_dtype": torch.bfloat16},
            ValueError,
            "^momentum_dtype: got torch.bfloat16 for parameter 0",
        ),
    ],
)
def test_options_of_16_bit_storage(options: dict[str, Any], error: type[Exception], text: str) -> None:
    params = [Parameter(ones(2, 2, dtype=torch.float16))]
    with pytest.raises(error, match=text):
        ScaleAmendedSGD(params, lr=0.1, **options)


def test_a_type_checker_knows_the_choices() -> None:
    """Those that the optimizer takes, so that a typo is found before it runs."""
    hints = get_type_hints(ScaleAmendedSGD.__init__)
    choices = {
        name: {value for part in (hint, *get_args(hint)) if get_origin(part) is Literal for value in get_args(part)}
        for name, hint in hints.items()
    }
    assert choices["backend"] == BACKENDS.keys() - {EMULATED_CUDA}
    for name in ("factors", "head", "decay", "norms", "rounding", "output_width", "momentum_dtype"):
        assert choices[name]
        assert "str" not in str(hints[name]).replace("Mapping", "")
        for value in choices[name]:
            ScaleAmendedSGD([Parameter(torch.ones(2, 2))], **{name: value})
