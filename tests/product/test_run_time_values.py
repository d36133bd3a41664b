"""Values that are set between steps, by schedulers, configuration files and hands."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import backends, message
from tests.unchanged import nothing_changes

pytestmark = pytest.mark.usefixtures("default_device")

HUGE = 10**400


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(
    ("name", "value", "error", "told"),
    [
        *[(n, "1e-3", TypeError, "'1e-3'") for n in ("lr", "momentum", "dampening", "weight_decay")],
        ("lr", None, TypeError, "None"),
        ("weight_decay", b"1", TypeError, "b'1'"),
        ("lr", HUGE, ValueError, "an integer beyond float64"),
        ("nesterov", "False", TypeError, "'False'"),
        ("maximize", "no", TypeError, "'no'"),
        ("amend", "yes", TypeError, "'yes'"),
    ],
)
def test_wrong_values_are_refused(name: str, value: Any, error: type[Exception], told: str, backend: str) -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = ScaleAmendedSGD([weight], lr=0.1, momentum=0.9, backend=backend)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    optimizer.param_groups[0][name] = value
    with nothing_changes(optimizer), pytest.raises(error, match=message(name, f"got {told}", "want")):
        optimizer.step()
    with pytest.raises(error, match=message(name, f"got {told}", "want")):
        ScaleAmendedSGD([{"params": [Parameter(torch.ones(2, 2))], name: value}], lr=0.1)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor([0.5])])
def test_numbers_of_any_kind_are_taken(value: Any) -> None:
    weight = Parameter(torch.ones(2))
    optimizer = ScaleAmendedSGD([weight], lr=0.1)
    optimizer.param_groups[0]["lr"] = value
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == [0.5, 0.5]


class OfNames(MutableMapping[Any, float]):
    """As a configuration file's mapping, which refuses to be asked for anything but a name."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values_of = values

    def __getitem__(self, key: Any) -> float:
        if not isinstance(key, str):
            raise KeyError(f"incompatible key type {type(key).__name__}, want str")
        return self.values_of[key]

    def __setitem__(self, key: Any, value: float) -> None:
        raise TypeError

    def __delitem__(self, key: Any) -> None:
        raise TypeError

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if not isinstance(key, str) or key in self.values_of else default


def test_options_of_a_configuration_file() -> None:
    params = [("first", Parameter(torch.ones(2, 2))), ("last", Parameter(torch.ones(3, 2)))]
    optimizer = ScaleAmendedSGD(
        params, momentum=0.9, factors=OfNames({"first": 2.0, "last": 1.0}), momentum_dtype="bfloat16"
    )
    assert [row.backward_factor for row in optimizer.layer_report()] == [2.0, 1.0]
    for _, param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.state[params[0][1]]["momentum_buffer"].dtype == torch.bfloat16


def test_a_fused_step_over_float64_is_taken_by_foreach() -> None:
    """As torch's takes it."""
    weight = Parameter(torch.ones(2, 2, dtype=torch.float64))
    with pytest.warns(UserWarning, match="fused: the kernels take no float64; 'foreach' takes the place of these"):
        optimizer = ScaleAmendedSGD([weight], lr=0.1, fused=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert weight.max().item() < 1
