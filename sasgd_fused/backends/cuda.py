"""The native backend on NVIDIA GPUs: one launch of the compiled extension's kernel for all tensors."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends import extension
from sasgd_fused.backends.device import DeviceBackend
from sasgd_fused.hyperparameters import GroupValues
from sasgd_fused.plan import State, StepPlan

_usable_devices: set[int] = set()


class CudaBackend(DeviceBackend):
    """The arguments of each launch hold what changes from step to step; see csrc/cuda/step.h."""

    name = "native"
    core: ModuleType = extension.core

    def __init__(self, plan: StepPlan, state: State) -> None:
        super().__init__(plan, state)
        with self._on_device():
            self._kernel = self.core.CudaPlan(device=self._device_index, **self._kernel_plan())
        self._tables = torch.zeros(self._kernel.table_bytes, dtype=torch.uint8, device=plan.device)
        kept = (self._tables, self._norms, self._stale, self._flags.on_device, self._rounding.on_device)
        with self._on_device():
            self._kernel.attach(*map(Tensor.data_ptr, kept), self._current_stream())
        self._no_lrs = array("Q")

    @classmethod
    def why_not(cls, device: torch.device, dtypes: Collection[torch.dtype]) -> str | None:
        """No CUDA in the extension, or a device or driver that it cannot use."""
        if torch.version.hip:
            return "it has a kernel for CUDA, not for ROCm"
        return extension.why_not_cuda() or _why_not_device(device.index or 0)

    def _send_addresses(self, weights: array[int], momentum_buffers: array[int], copies: array[int]) -> None:
        with self._on_device():
            self._kernel.place(weights, momentum_buffers, copies, self._current_stream())

    def _launch_norm_pass(self, chosen: bytearray) -> None:
        with self._on_device():
            self._kernel.measure(chosen, self._current_stream())

    def _launch_step(
        self,
        values: Sequence[GroupValues],
        lrs: Mapping[int, Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        with self._on_device():
            self._kernel.step(
                self._gradients.table,
                self._gradients.codes,
                array("d", chain.from_iterable(values)),
                self._lr_addresses(lrs, len(values)),
                *(0 if number is None else number.data_ptr() for number in (grad_scale, found_inf)),
                self._current_stream(),
            )

    def _lr_addresses(self, lrs: Mapping[int, Tensor], groups: int) -> array[int]:
        if len(self._no_lrs) != groups:
            self._no_lrs = array("Q", bytes(8 * groups))
        if not lrs:
            return self._no_lrs
        addresses = array("Q", self._no_lrs)
        for group, lr in lrs.items():
            addresses[group] = lr.data_ptr()
        return addresses

    def _launched_steps(self) -> int:
        return int(self._kernel.steps)

    def _is_capturing(self) -> bool:
        with self._on_device():
            return bool(self._kernel.is_capturing(self._current_stream()))

    def _sum_squares(self) -> Tensor:
        begin, count = self._kernel.sum_squares_offset, len(self.plan.blocks)
        return self._tables[begin : begin + 8 * count].view(torch.float64)

    def _memory(self) -> list[Tensor]:
        return [self._tables, *super()._memory()]

    def _current_stream(self) -> int:
        # What current_stream() makes a Stream of, which takes microseconds.
        return torch._C._cuda_getCurrentRawStream(self._device_index)

    def _on_device(self) -> AbstractContextManager[Any]:
        return _on_device(self._device_index)

    @property
    def _device_index(self) -> int:
        return self.plan.device.index or 0


def _on_device(index: int) -> AbstractContextManager[Any]:
    """Makes a device the current one for the extension, which does not put back the one before."""
    return nullcontext() if torch.cuda.current_device() == index else torch.cuda.device(index)


def _why_not_device(index: int) -> str | None:
    """Why the kernels cannot run on a device that the driver knows, or None if they can."""
    if index not in _usable_devices:
        try:
            with _on_device(index):
                extension.core.check_cuda_device(index)
        except RuntimeError as error:
            return str(error)
        _usable_devices.add(index)
    return None
