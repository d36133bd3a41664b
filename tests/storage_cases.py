"""The ways to store weights and momentum in 16 bits, for the tests of what is around the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from sasgd_fused.shards import dealt_out, is_sharded
from tests.distributed.sharded_runs import even_network, whole
from tests.helpers import Case
from tests.unchanged import bits

BF16 = torch.bfloat16

HYPERPARAMETERS: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}
# For each its name, the dtype of the parameters, and the optimizer's options.
STORAGE: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "masters": (BF16, {"master_weights": True}),
    "masters, float16": (torch.float16, {"master_weights": True}),
    "small momentum": (torch.float32, {"momentum_dtype": BF16}),
    "small stochastic momentum": (torch.float32, {"momentum_dtype": BF16, "rounding": "stochastic"}),
    "stochastic weights": (BF16, {"rounding": "stochastic", "rounding_seed": 3}),
    "all": (BF16, {"master_weights": True, "momentum_dtype": BF16, "rounding": "stochastic"}),
}
STOCHASTIC = [name for name, (_, options) in STORAGE.items() if "rounding" in options]
NEAREST = [name for name in STORAGE if name not in STOCHASTIC]
KEPT = ("master_weight", "momentum_buffer", "rounding_step")


def model_for(storage: str, layout: str = "") -> nn.Sequential:
    """7 rows and 3 are dealt out unevenly; of 1 row there is an empty part."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1))
    if layout in ("tensor parallel", "both"):
        model = even_network()
    return model.to(STORAGE[storage][0])


def optimizer_for(model: nn.Module, storage: str, **options: Any) -> ScaleAmendedSGD:
    """The optimizer of a model that has the storage's dtype.

    Args:
        model: the network.
        storage: a key of STORAGE.
        options: hyperparameters, or others.
    """
    return ScaleAmendedSGD(parameter_groups(model), **{**HYPERPARAMETERS, **STORAGE[storage][1], **options})


def case_of(storage: str, **changes: Any) -> Case:
    """Parameters of several shapes and their gradients.

    Args:
        storage: a key of STORAGE.
        changes: to the case.
    """
    dtype, options = STORAGE[storage]
    shapes = [(6, 3, 3, 3), (6,), (0, 4), (), (40, 130), (5, 40)]
    return Case(shapes, dtype, **{"options": {**HYPERPARAMETERS, "lr": 1e-4, **options}, **changes})


def kept_keys(storage: str) -> list[str]:
    """What the state of a parameter has after a step with momentum."""
    has_master = "master_weights" in STORAGE[storage][1]
    return [key for key, has in zip(KEPT, (has_master, True, storage in STOCHASTIC), strict=True) if has]


def momentum_dtype(storage: str) -> torch.dtype:
    """Of the buffers in the state."""
    dtype, options = STORAGE[storage]
    weight = torch.float32 if "master_weights" in options else dtype
    chosen: torch.dtype = options.get("momentum_dtype", weight)
    return chosen


def give_gradients(model: nn.Module, step: int) -> None:
    """The same ones dealt out or whole: so all that differs is the optimizer's."""
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        if is_sharded(param):
            grad = dealt_out(grad, param)
        param.grad = grad


def train(model: nn.Module, optimizer: ScaleAmendedSGD, steps: range) -> None:
    for step in steps:
        give_gradients(model, step)
        optimizer.step()


def outcome(model: nn.Module, optimizer: ScaleAmendedSGD) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Weights and states, whole."""
    optimizer.state_dict()  # a device's counts come into the state
    params = list(model.parameters())
    states = [{key: whole(v) if isinstance(v, Tensor) else v for key, v in optimizer.state[p].items()} for p in params]
    return [whole(param) for param in params], states


def to_the_bit(params: Iterable[Tensor], states: Sequence[dict[str, Any]]) -> list[Any]:
    """Weights and states such that they are equal only if all bits are."""
    state = [{key: _exact(value) for key, value in of_param.items()} for of_param in states]
    return [[_exact(param) for param in params], state]


def _exact(value: Any) -> Any:
    return (str(value.dtype), tuple(value.shape), bits(value)) if isinstance(value, Tensor) else value
