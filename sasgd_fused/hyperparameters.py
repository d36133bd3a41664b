"""The hyperparameters of parameter groups: what is allowed, and their values in one step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ldexp
from typing import Any, NamedTuple

from torch import Tensor


class GroupValues(NamedTuple):
    """The hyperparameters of one parameter group in one step. Kernels take the fields in this order."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool


@dataclass(frozen=True)
class StepNumbers:
    """All numbers of one step. Reading one that is on a device waits for it, so a backend that can leaves it there.

    Attributes:
        values: of each group; ``lr`` is 0 where it is on a device.
        has_momentum: of each group, whether its momentum is not 0.
        device_lrs: group index → a learning rate on a device.
        grad_scale: what the gradients were multiplied by (GradScaler), or None for 1.
        found_inf: not 0 if the gradients overflowed (GradScaler); None for 0.
    """

    values: list[GroupValues]
    has_momentum: list[bool]
    device_lrs: dict[int, Tensor]
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def on_host(self) -> list[GroupValues]:
        """Returns the values with all learning rates."""
        if not self.device_lrs:
            return self.values
        values = list(self.values)
        for index, lr in self.device_lrs.items():
            values[index] = values[index]._replace(lr=float(lr))
        return values

    def overflowed(self) -> bool:
        """Returns whether the step is to be skipped."""
        return self.found_inf is not None and bool(self.found_inf.item())

    def loss_scale(self) -> float:
        """Returns what the gradients were multiplied by."""
        return 1.0 if self.grad_scale is None else float(self.grad_scale)


def read_numbers(
    groups: Sequence[Mapping[str, Any]], grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> StepNumbers:
    """Reads the hyperparameters of all groups.

    Schedulers may set any value between steps, so only the types are checked here, before anything is updated.

    Raises:
        TypeError, ValueError: a value is not a number.
    """
    values, has_momentum, device_lrs = [], [], {}
    for index, group in enumerate(groups):
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.device.type != "cpu":
            _check_number("lr", lr, f" of parameter group {index}")
            device_lrs[index] = lr
        read = _read_group_values(group, index, index in device_lrs)
        values.append(read)
        has_momentum.append(read.momentum != 0)
    return StepNumbers(values, has_momentum, device_lrs, grad_scale, found_inf)


def _read_group_values(group: Mapping[str, Any], index: int, without_lr: bool) -> GroupValues:
    try:  # ldexp(x, 0) is float(x), but takes no strings
        lr = 0.0 if without_lr else ldexp(group["lr"], 0)
        momentum, dampening = ldexp(group["momentum"], 0), ldexp(group["dampening"], 0)
        weight_decay, nesterov, maximize = ldexp(group["weight_decay"], 0), group["nesterov"], group["maximize"]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            _number(name, group[name], f" of parameter group {index}")
        raise
    if nesterov.__class__ is not bool or maximize.__class__ is not bool:
        _check_flags(group, f" of parameter group {index}")
    return GroupValues(lr, momentum, dampening, weight_decay, bool(nesterov), bool(maximize))


def check_defaults(defaults: Mapping[str, Any]) -> None:
    """Checks the hyperparameters that a constructor was given; a group's may differ, as in torch.optim.SGD.

    Raises:
        TypeError, ValueError: as `check_hyperparameters`, and for Nesterov momentum without momentum or with dampening.
    """
    check_hyperparameters(defaults)
    momentum, dampening = defaults["momentum"], defaults["dampening"]
    if defaults["nesterov"] and (momentum <= 0 or dampening != 0):
        raise ValueError(
            f"nesterov: got True with momentum={momentum!r} and dampening={dampening!r}, "
            "want momentum > 0 and dampening = 0"
        )


def check_hyperparameters(group: Mapping[str, Any]) -> None:
    """Checks a group's hyperparameters.

    Raises:
        TypeError: a value is not a number.
        ValueError: a value is out of its range; the message names it.
    """
    for name in ("lr", "momentum", "weight_decay"):
        value = _number(name, group[name])
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}: got {group[name]!r}, want a finite number >= 0")
    dampening = _number("dampening", group["dampening"])
    if not math.isfinite(dampening):
        raise ValueError(f"dampening: got {group['dampening']!r}, want a finite number")
    _check_flags(group)
    if group.get("differentiable"):
        raise ValueError("differentiable: got True, want False (the update is not differentiable)")


def _check_number(name: str, value: Tensor, where: str) -> None:
    if value.numel() != 1 or value.is_complex():
        raise ValueError(
            f"{name}{where}: got a tensor of shape {tuple(value.shape)} and {value.dtype}, want one real element"
        )


def _check_flags(group: Mapping[str, Any], where: str = "") -> None:
    for name in ("nesterov", "maximize"):
        if group[name] not in (True, False):  # a string would be true, whatever it says
            raise TypeError(f"{name}{where}: got {group[name]!r}, want True or False")


def _number(name: str, value: object, where: str = "") -> float:
    if isinstance(value, Tensor):
        _check_number(name, value, where)
        return float(value)
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}{where}: got {value!r}, want a number")
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}{where}: got {value!r}, want a number") from error
    except OverflowError as error:
        raise ValueError(f"{name}{where}: got an integer beyond float64, want a finite number") from error
