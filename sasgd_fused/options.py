"""The constructor's options and the groups' hyperparameters: what is allowed, and one place that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import ldexp
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

FactorRule: TypeAlias = Literal["width", "product"]
Head: TypeAlias = Literal["amended", "plain"]
Decay: TypeAlias = Literal["amended", "shape"]
Norms: TypeAlias = Literal["track", "freeze"]
Rounding: TypeAlias = Literal["nearest", "stochastic"]
BackendName: TypeAlias = Literal["native", "triton", "foreach", "reference"]
OutputWidth: TypeAlias = int | Literal["mean"] | None
# Or its name: a configuration file has no dtypes.
MomentumDtype: TypeAlias = torch.dtype | Literal["bfloat16"] | None


@dataclass(frozen=True)
class Options:
    """What holds for the whole optimizer, as opposed to one parameter group; see `ScaleAmendedSGD`."""

    factors: FactorRule | Mapping[Any, float]
    head: Head
    decay: Decay
    norms: Norms
    eps: float
    output_width: OutputWidth
    master_weights: bool = False
    momentum_dtype: torch.dtype | None = None
    rounding: Rounding = "nearest"
    rounding_seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.factors, Mapping):
            # A dictionary: the mappings of configuration files refuse to be asked for a parameter.
            object.__setattr__(self, "factors", dict(self.factors))
        else:
            _check_choice("factors", self.factors, get_args(FactorRule), " or a mapping to backward factors")
        _check_choice("head", self.head, get_args(Head))
        _check_choice("decay", self.decay, get_args(Decay))
        _check_choice("norms", self.norms, get_args(Norms))
        if not (isinstance(self.eps, (int, float)) and self.eps > 0 and math.isfinite(self.eps)):
            raise ValueError(f"eps: got {self.eps!r}, want a positive finite number")
        if self.output_width not in (None, "mean") and not is_positive_int(self.output_width):
            raise ValueError(f"output_width: got {self.output_width!r}, want a positive integer, 'mean' or None")
        if not isinstance(self.master_weights, bool):
            raise TypeError(f"master_weights: got {self.master_weights!r}, want True or False")
        if self.momentum_dtype not in (None, torch.bfloat16):
            raise ValueError(f"momentum_dtype: got {self.momentum_dtype!r}, want torch.bfloat16 or None")
        _check_choice("rounding", self.rounding, get_args(Rounding))
        if not isinstance(self.rounding_seed, int) or isinstance(self.rounding_seed, bool):
            raise TypeError(f"rounding_seed: got {self.rounding_seed!r}, want an integer")

    @property
    def freezes_norms(self) -> bool:
        """Whether the norms of the first update are kept."""
        return self.norms == "freeze"

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that gave these options."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


OPTION_NAMES = tuple(field.name for field in fields(Options))


class GroupValues(NamedTuple):
    """The hyperparameters of one parameter group in one step."""

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
        device_lrs: group index → a learning rate on a device.
        grad_scale: what the gradients were multiplied by (GradScaler), or None for 1.
        found_inf: not 0 if the gradients overflowed (GradScaler); None for 0.
    """

    values: list[GroupValues]
    device_lrs: dict[int, Tensor]
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def on_host(self) -> list[GroupValues]:
        """The values with all learning rates."""
        if not self.device_lrs:
            return self.values
        values = list(self.values)
        for index, lr in self.device_lrs.items():
            values[index] = values[index]._replace(lr=float(lr))
        return values

    def overflowed(self) -> bool:
        """Whether the step is to be skipped."""
        return self.found_inf is not None and bool(self.found_inf.item())

    def loss_scale(self) -> float:
        """What the gradients were multiplied by."""
        return 1.0 if self.grad_scale is None else float(self.grad_scale)


def read_numbers(
    groups: Sequence[Mapping[str, Any]], grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> StepNumbers:
    """Reads the hyperparameters of all groups.

    Schedulers may set any value between steps, so only the types are checked here, before anything is updated.

    Raises:
        TypeError, ValueError: a value is not a number.
    """
    device_lrs = {
        index: lr
        for index, group in enumerate(groups)
        if isinstance(lr := group["lr"], Tensor) and lr.device.type != "cpu"
    }
    for index, lr in device_lrs.items():
        _check_number("lr", lr, f" of parameter group {index}")
    values = [_read_group_values(group, index, index in device_lrs) for index, group in enumerate(groups)]
    return StepNumbers(values, device_lrs, grad_scale, found_inf)


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


def dtype_of(given: Any) -> Any:
    """The dtype that a name means; anything else as it is, for `Options` to check."""
    return torch.bfloat16 if given in ("bfloat16", "torch.bfloat16") else given


def is_positive_int(value: object) -> bool:
    """Whether a value is a positive integer; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_choice(name: str, value: object, choices: tuple[str, ...], more: str = "") -> None:
    if value not in choices:
        wanted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: got {value!r}, want one of {wanted}{more}")


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
