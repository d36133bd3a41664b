"""Reading from a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Readback:
    """Copies of tensors on their way to the host.

    Args:
        tensors: on one device; copied as the current stream's work so far leaves them.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        on_cuda = any(tensor.is_cuda for tensor in tensors)
        self._copies = [torch.empty_like(tensor, device="cpu", pin_memory=on_cuda) for tensor in tensors]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if on_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensors[0].device))

    def has_arrived(self) -> bool:
        """Whether the copies are complete."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> list[Tensor]:
        """The copies, after waiting for them if need be."""
        if self._event:
            self._event.synchronize()
        return self._copies
