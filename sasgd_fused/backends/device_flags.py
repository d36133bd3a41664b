"""Flags that a kernel sets on a device, and what the host knows of them without waiting."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from sasgd_fused.backends.readback import Readback

# As in csrc/cuda/step.h.
STARTED = 1  # the momentum buffer has taken its first gradient
NORM_KEPT = 2  # frozen norms: the scaled block's norm stays as it is


class DeviceFlags:
    """Bits in a byte for each parameter.

    Args:
        count: number of parameters.
        norms: on the device; what is asked of the flags comes with a copy of these.

    Attributes:
        on_device: the bytes.
        known: the bits that are set for certain.
    """

    def __init__(self, count: int, norms: Tensor) -> None:
        self.on_device = torch.zeros(count, dtype=torch.uint8, device=norms.device)
        self.known = bytearray(count)
        self._norms = norms
        self._uncertain: set[int] = set()  # parameters of which other bits may be set too
        self._asked: set[int] = set()  # those of them that the readback tells of
        self._readback: Readback | None = None

    def change(self, bit: int, set_in: Collection[int], clear_in: Collection[int]) -> None:
        """Sets and clears a bit of some parameters, on the device and here."""
        cleared, added = bytearray(b"\xff" * len(self.known)), bytearray(len(self.known))
        for index in clear_in:
            cleared[index] = 0xFF & ~bit
            self.known[index] &= ~bit
        for index in set_in:
            added[index] = bit
            self.known[index] |= bit
        for apply, flags in ((self.on_device.bitwise_and_, cleared), (self.on_device.bitwise_or_, added)):
            apply(torch.frombuffer(flags, dtype=torch.uint8).to(self.on_device.device, non_blocking=True))
        self._uncertain |= self._asked  # what the device was about to tell is not true any more
        self._asked, self._readback = set(), None

    def note_possible(self, index: int, bits: int) -> None:
        """Notes that a step has set bits of a parameter, if it was not skipped."""
        if bits & ~self.known[index]:
            self._uncertain.add(index)

    def are_known(self) -> bool:
        """Whether no bit is set on the device that is not known."""
        return not self._uncertain and not self._asked

    def ask(self) -> None:
        """Has the device tell, unless it is about to."""
        if self._uncertain and self._readback is None:
            self.ask_anew()

    def ask_anew(self) -> None:
        """Has the device tell how things are after all work so far."""
        self._readback = Readback((self.on_device, self._norms))
        self._asked, self._uncertain = self._asked | self._uncertain, set()

    def have_arrived(self) -> bool:
        """Whether the device has been asked and has told."""
        return self._readback is not None and self._readback.has_arrived()

    def take(self) -> tuple[list[int], list[float]]:
        """Waits for what was asked: the bytes and the norms. It is for the caller to add to `known`."""
        assert self._readback
        flags, norms = (copy.tolist() for copy in self._readback.wait())
        self._asked, self._readback = set(), None
        return flags, norms
