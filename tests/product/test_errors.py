"""What cannot be done is refused with a message that names it, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, Case, backends, message
from tests.tiers import thin
from tests.unchanged import nothing_changes

pytestmark = pytest.mark.usefixtures("default_device")

ones = partial(torch.ones, device=DEVICE)  # for what is made before a test begins
FINITE = "want a finite number >= 0"


class Elsewhere(Parameter):
    """Torch does not let a gradient of another device in; on a machine with two, moving the parameter does."""

    grad = torch.ones(2, 3, device="meta")


def group(**options: Any) -> dict[str, Any]:
    return {"params": [Parameter(ones(2, 3)), Parameter(ones(3, 3))], **options}


def only(param: Any) -> dict[str, Any]:
    return {"params": [Parameter(ones(2, 3)), param]}


def twice(param: Parameter) -> dict[str, Any]:
    return {"params": [param, Parameter(ones(3)), param]}


BAD_GROUPS: list[tuple[Any, type[Exception], tuple[str, ...]]] = [
    (group(lr=-1), ValueError, ("lr: got -1", FINITE)),
    (group(momentum="much"), TypeError, ("momentum: got 'much'", "want a number")),
    (group(differentiable=True), ValueError, ("differentiable: got True", "want False")),
    (group(amend=None), TypeError, ("amend: got None", "want True or False")),
    (group(amend=1), TypeError, ("amend: got 1", "want True or False")),
    *[
        (group(**{name: value}), ValueError, (f"{name}: got {bad!r}", "want a positive integer or None"))
        for name in ("rows", "columns")
        for value, bad in ((0, 0), (-1, -1), (True, True), (2.0, 2.0), ("2", "2"), ([2, 0], 0), ((None, 1.0), 1.0))
    ],
    (group(rows=[4]), ValueError, ("rows: got 1 entries for 2 parameters", "want one for each")),
    (group(columns=[4, 4, 4]), ValueError, ("columns: got 3 entries for 2 parameters", "want one for each")),
    (only(ones(2, 2).to_sparse()), ValueError, ("parameter 1 of group 1", "sparse_coo", "want a dense tensor")),
    (only(ones(2, 2) * 1j), ValueError, ("parameter 1 of group 1", "complex64", "want one of float32")),
    (only(ones(2, 2, dtype=torch.int64)), ValueError, ("parameter 1 of group 1", "int64", "want one of float32")),
    (only(ones(2, 1).expand(2, 4)), ValueError, ("parameter 1 of group 1", "expanded", "memory of their own")),
    (only(Parameter(ones(2, 2)).T), ValueError, ("can't optimize a non-leaf Tensor",)),
    (only(3), TypeError, ("one of the params is int",)),
    (twice(Parameter(ones(2, 2))), ValueError, ("params: parameter 2 comes twice", "want every parameter once")),
    ({"params": {Parameter(ones(2, 2))}}, TypeError, ("ordered collections",)),
    ([Parameter(ones(2, 2))], TypeError, ("param_group must be a dict",)),
    ({"lr": 0.1}, KeyError, ("params",)),
]


def fresh(group: Any) -> Any:
    """A copy, since torch writes its defaults into the group that it is given."""
    return dict(group) if isinstance(group, dict) else group


@thin(slow=0)  # refused in front of every backend
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(("bad", "error", "parts"), BAD_GROUPS)
def test_bad_groups_are_not_added(bad: Any, error: type[Exception], parts: tuple[str, ...], backend: str) -> None:
    case = Case([(4, 3), (4,), (2, 4)], options={"momentum": 0.9})
    params, optimizer = case.run(backend)
    with nothing_changes(optimizer), pytest.raises(error, match=message(*parts)):
        optimizer.add_param_group(fresh(bad))
    optimizer.step()
    untouched, other = case.run(backend)
    other.step()
    assert all(map(torch.equal, params, untouched))


@pytest.mark.parametrize(("bad", "error", "parts"), BAD_GROUPS)
def test_bad_groups_at_construction(bad: Any, error: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(error, match=message(*parts)):
        ScaleAmendedSGD([{"params": [Parameter(torch.ones(4, 3))]}, fresh(bad)])


@pytest.mark.parametrize("backend", backends())
def test_a_parameter_of_another_group_is_not_added(backend: str) -> None:
    params, optimizer = Case([(4, 3)]).run(backend)
    with nothing_changes(optimizer), pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": params})


@pytest.mark.parametrize("backend", backends())
def test_a_layer_without_a_factor_is_not_added(backend: str) -> None:
    param = Parameter(torch.ones(2, 3))
    optimizer = ScaleAmendedSGD([param], backend=backend, factors={param: 1.0})
    with nothing_changes(optimizer), pytest.raises(ValueError, match=r"no entry for parameter 0 of group 1"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(3, 2))]})


def set_grad(values: Tensor) -> Callable[[ScaleAmendedSGD, Parameter], None]:
    """Puts other values behind the gradient, which torch allows and does not check."""

    def spoil(_: ScaleAmendedSGD, param: Parameter) -> None:
        cast(Tensor, param.grad).data = values

    return spoil


def set_sparse_grad(_: ScaleAmendedSGD, param: Parameter) -> None:
    param.grad = torch.ones(2, 4).to_sparse()


def set_momentum(optimizer: ScaleAmendedSGD, param: Parameter) -> None:
    optimizer.state[param]["momentum_buffer"] = torch.ones(3)


def set_in_group(**values: object) -> Callable[[ScaleAmendedSGD, Parameter], None]:
    return lambda optimizer, _: optimizer.param_groups[0].update(values)


GRADIENT = "gradient of parameter 2 of group 0"


@thin(slow=0)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(
    ("spoil", "error", "parts"),
    [
        (set_sparse_grad, ValueError, (f"{GRADIENT}: got layout torch.sparse_coo", "want a dense tensor")),
        (set_grad(ones(2, 4) * 1j), ValueError, (f"{GRADIENT}: got torch.complex64", "want a real floating")),
        (set_grad(ones(2, 4).int()), ValueError, (f"{GRADIENT}: got torch.int32", "want a real floating")),
        (set_grad(ones(4, 2)), ValueError, (f"{GRADIENT}: got shape (4, 2)", "want the parameter's, (2, 4)")),
        (set_grad(ones(3)), ValueError, (f"{GRADIENT}: got shape (3,)", "want the parameter's, (2, 4)")),
        (set_momentum, ValueError, ("momentum_buffer of parameter 2 of group 0: got shape (3,)", "want", "(2, 4)")),
        *[
            (set_in_group(**{name: value}), TypeError, (f"{name} of parameter group 0: got {value!r}", "want a number"))
            for name in ("lr", "momentum", "dampening", "weight_decay")
            for value in ("much", None, [0.1], 1j)
        ],
        (set_in_group(lr=ones(2)), ValueError, ("lr of parameter group 0: got a tensor of shape (2,)", "want")),
        (set_in_group(rows=-3), ValueError, ("rows: got -3", "want a positive integer or None")),
        (set_in_group(columns=[1]), ValueError, ("columns: got 1 entries for 3 parameters", "want one for each")),
        (set_in_group(amend="no"), TypeError, ("amend: got 'no'", "want True or False")),
    ],
)
def test_what_was_spoilt_between_steps(
    spoil: Callable[[ScaleAmendedSGD, Parameter], None], error: type[Exception], parts: tuple[str, ...], backend: str
) -> None:
    params, optimizer = Case([(4, 3), (4,), (2, 4)], options={"momentum": 0.9}).run(backend)
    spoil(optimizer, params[2])
    for _ in range(2):  # it does not go away by itself either
        with nothing_changes(optimizer), pytest.raises(error, match=message(*parts)):
            optimizer.step()


@pytest.mark.parametrize("backend", backends())
def test_a_gradient_on_another_device(backend: str) -> None:
    params = [Parameter(torch.ones(2, 2)), Elsewhere(torch.ones(2, 3))]
    params[0].grad = torch.ones(2, 2)
    optimizer = ScaleAmendedSGD(params, backend=backend)
    wanted = message("gradient of parameter 1 of group 0: got device meta", f"want the parameter's, {DEVICE}")
    with nothing_changes(optimizer), pytest.raises(ValueError, match=wanted):
        optimizer.step()


@pytest.mark.parametrize("backend", backends())
def test_a_closure_that_fails(backend: str) -> None:
    _, optimizer = Case([(4, 3)]).run(backend)

    def closure() -> float:
        raise FloatingPointError("loss")

    with nothing_changes(optimizer), pytest.raises(FloatingPointError, match="loss"):
        optimizer.step(closure)
