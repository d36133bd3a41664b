"""Every learning-rate scheduler of torch drives ScaleAmendedSGD as it drives torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer, lr_scheduler

from tests.helpers import backends
from tests.product.beside_sgd import both, step
from tests.tiers import thin

pytestmark = pytest.mark.usefixtures("default_device")

S = lr_scheduler
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: S.LambdaLR(o, lambda epoch: 0.5**epoch),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda epoch: 0.7),
    "StepLR": lambda o: S.StepLR(o, 2),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: S.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: S.LinearLR(o, total_iters=4),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: S.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: S.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 0.1, total_steps=8),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=0),
    "ChainedScheduler": lambda o: S.ChainedScheduler([S.ConstantLR(o), S.ExponentialLR(o, 0.5)]),
    "SequentialLR": lambda o: S.SequentialLR(o, [S.ConstantLR(o), S.ExponentialLR(o, 0.5)], [2]),
}


def test_every_scheduler_of_torch_is_here() -> None:
    assert set(lr_scheduler.__all__) - {"LRScheduler"} <= SCHEDULERS.keys()


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # SequentialLR of torch 2.6
@thin(slow=0)  # a scheduler writes into the groups, which all backends read in one place
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name: str, tensor_lr: bool, backend: str) -> None:
    """Four epochs of two steps; the learning rates are the same numbers, and momentum cycles where it should."""
    seen: dict[int, list[tuple[float, float]]] = {}

    def script(optimizer: Optimizer, params: list[Parameter]) -> None:
        (group,) = optimizer.param_groups
        scheduler = SCHEDULERS[name](optimizer)
        values = seen[len(seen)] = []
        for epoch in range(4):
            for batch in range(2):
                step(optimizer, params, 2 * epoch + batch)
                values.append((float(group["lr"]), group["momentum"]))
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))

    both(backend, script, lr=torch.tensor(0.1) if tensor_lr else 0.1, dampening=0)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 1
