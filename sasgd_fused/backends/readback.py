"""Reading from a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Readback:
    """Copies of tensors on their way to the host.

    Args:
        tensors: on one device; copied as the current stream's work so far leaves them.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        device = tensors[0].device
        is_elsewhere = device.type != "cpu"
        self._copies = [torch.empty_like(tensor, device="cpu", pin_memory=is_elsewhere) for tensor in tensors]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._event: Any = None
        if is_elsewhere:
            module = torch.get_device_module(device)
            self._event = module.Event()
            self._event.record(module.current_stream(device))

    def has_arrived(self) -> bool:
        """Whether the copies are complete."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> list[Tensor]:
        """The copies, after waiting for them if need be."""
        if self._event:
            self._event.synchronize()
        return self._copies
