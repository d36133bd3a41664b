"""How the learning rate falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

PATIENCE = 10
FACTOR = 0.5


class Schedule(Protocol):
    """Sets the learning rate of an optimizer, and can be saved."""

    def after_step(self) -> None:
        """To be called after every step of the optimizer."""

    def after_epoch(self) -> None:
        """To be called after every epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""


class Cosine:
    """Falls to zero along a cosine, a little with every step.

    Args:
        optimizer: whose learning rate to set.
        steps: of the whole run.
        validation_error: not needed here.
    """

    def __init__(self, optimizer: Optimizer, steps: int, validation_error: Callable[[], float] | None) -> None:
        self._scheduler = CosineAnnealingLR(optimizer, steps)

    def after_step(self) -> None:
        """Lowers the learning rate."""
        self._scheduler.step()

    def after_epoch(self) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's scheduler."""
        return self._scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state over."""
        self._scheduler.load_state_dict(state_dict)


class Plateau:
    """Halves when the validation error has not fallen for more than ten epochs (`ReduceLROnPlateau`), as the paper.

    Args:
        optimizer: whose learning rate to set.
        steps: not needed here.
        validation_error: measures it; None where there are no images for that.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, optimizer: Optimizer, steps: int, validation_error: Callable[[], float] | None) -> None:
        if validation_error is None:
            raise ValueError("schedule: got plateau for a data set without validation images, want cosine")
        self._validation_error = validation_error
        self._scheduler = ReduceLROnPlateau(optimizer, mode="min", factor=FACTOR, patience=PATIENCE)

    def after_step(self) -> None:
        """Does nothing."""

    def after_epoch(self) -> None:
        """Measures the validation error and halves the learning rate if it is time."""
        self._scheduler.step(self._validation_error())

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's scheduler."""
        return self._scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state over."""
        self._scheduler.load_state_dict(state_dict)


SCHEDULES: dict[str, Callable[[Optimizer, int, Callable[[], float] | None], Schedule]] = {
    "cosine": Cosine,
    "plateau": Plateau,
}
