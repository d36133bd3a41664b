"""Words in device memory that a kernel reads, sent only where they changed."""

from __future__ import annotations

import torch
from torch import Tensor


class DeviceTable:
    """A table of 8-byte words on a device, and what the host knows of it.

    Args:
        words: how many.
        dtype: int64 or float64.
        device: where they are kept.
    """

    def __init__(self, words: int, dtype: torch.dtype, device: torch.device) -> None:
        self.on_device = torch.zeros(words, dtype=dtype, device=device)
        self._sent = bytes(8 * words)
        # A graph copies from the host's memory to the device's at each replay.
        self._captured: list[Tensor] = []
        # Made before a capture, because older versions of torch cannot pin memory in one.
        self._spare: Tensor | None = self._new_on_host()

    def send(self, words: bytes, captured: bool) -> Tensor:
        """Has the device's words be these for all work that follows on the current stream.

        Args:
            words: all of them.
            captured: whether this is recorded in a graph, which then has a table of its own: later ones change nothing
                for it.

        Returns:
            The table on the device.
        """
        if not words:
            return self.on_device
        if captured:
            on_host = self._new_on_host() if self._spare is None else self._spare
            self._spare = None
            on_host.copy_(_tensor_of(words, on_host.dtype))
            table = torch.empty_like(self.on_device).copy_(on_host, non_blocking=True)
            self._captured += [table, on_host]
            return table
        if self._spare is None:
            self._spare = self._new_on_host()
        if words != self._sent:
            self.on_device.copy_(self._on_host(words), non_blocking=True)
            self._sent = words
        return self.on_device

    def memory(self) -> list[Tensor]:
        """What the device may still read from or write to."""
        return [self.on_device, *self._captured]

    @property
    def _pins(self) -> bool:
        # From memory that is not pinned a copy may wait for the device, and cannot be captured.
        return self.on_device.device.type != "cpu"

    def _on_host(self, words: bytes) -> Tensor:
        on_host = _tensor_of(words, self.on_device.dtype)
        return on_host.pin_memory() if self._pins else on_host

    def _new_on_host(self) -> Tensor:
        return torch.empty_like(self.on_device, device="cpu", pin_memory=self._pins)


def _tensor_of(words: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(words), dtype=dtype)
