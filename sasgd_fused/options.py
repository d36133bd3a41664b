"""The constructor's options: what holds for the whole optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

import torch

Scale: TypeAlias = Literal["amended", "relative"]
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
    scale: Scale = "amended"
    depth: int | None = None
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
        _check_choice("scale", self.scale, get_args(Scale))
        if self.depth is not None and not is_positive_int(self.depth):
            raise ValueError(f"depth: got {self.depth!r}, want a positive integer or None")
        self._check_scale()
        if not isinstance(self.master_weights, bool):
            raise TypeError(f"master_weights: got {self.master_weights!r}, want True or False")
        if self.momentum_dtype not in (None, torch.bfloat16):
            raise ValueError(f"momentum_dtype: got {self.momentum_dtype!r}, want torch.bfloat16 or None")
        _check_choice("rounding", self.rounding, get_args(Rounding))
        if not isinstance(self.rounding_seed, int) or isinstance(self.rounding_seed, bool):
            raise TypeError(f"rounding_seed: got {self.rounding_seed!r}, want an integer")

    def _check_scale(self) -> None:
        """Refuses what has no part in the scale."""
        if not self.is_relative:
            if self.depth is not None:
                raise ValueError(
                    f"depth: got {self.depth!r} with scale='amended', want None: it has no part in that scale"
                )
            return
        for name, default in (("factors", "width"), ("norms", "track"), ("output_width", None)):
            if (value := getattr(self, name)) != default:
                raise ValueError(
                    f"{name}: got {value!r} with scale='relative', want {default!r}: it has no part in that scale"
                )

    @property
    def is_relative(self) -> bool:
        """Whether gradients are scaled by their own norm too."""
        return self.scale == "relative"

    @property
    def freezes_norms(self) -> bool:
        """Whether the norms of the first update are kept."""
        return self.norms == "freeze"

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments that gave these options."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def drop_from(self, group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
        """Removes the options, which torch copies from the defaults, from a parameter group.

        Raises:
            ValueError: the group has another value than the optimizer.
        """
        for name, value in self.arguments().items():
            if (own := group.pop(name, value)) not in (value, defaults.get(name)):
                raise ValueError(f"{name}: got {own!r} for one parameter group, want it for the whole optimizer")

    def plain(self, factors: Mapping[str, float]) -> dict[str, Any]:
        """Returns the same as plain values, which a file can hold.

        Args:
            factors: backward factors by the layers' names, in the place of a mapping from parameters.
        """
        values = self.arguments()
        if self.momentum_dtype is not None:
            values["momentum_dtype"] = str(self.momentum_dtype)
        if isinstance(self.factors, Mapping):
            values["factors"] = dict(factors)
        return values


OPTION_NAMES = tuple(field.name for field in fields(Options))


def dtype_of(given: Any) -> Any:
    """Returns the dtype that a name means; anything else as it is, for `Options` to check."""
    return torch.bfloat16 if given in ("bfloat16", "torch.bfloat16") else given


def is_positive_int(value: object) -> bool:
    """Returns whether a value is a positive integer; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_choice(name: str, value: object, choices: tuple[str, ...], more: str = "") -> None:
    if value not in choices:
        wanted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: got {value!r}, want one of {wanted}{more}")
