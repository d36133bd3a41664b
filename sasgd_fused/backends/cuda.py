"""The native backend on NVIDIA GPUs: one launch for all tensors, and no waiting for the device in a step."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from itertools import chain
from operator import is_
from types import ModuleType

import torch
from torch import Tensor

from sasgd_fused.backends import extension
from sasgd_fused.backends.device_flags import DeviceFlags
from sasgd_fused.backends.kernel import KernelBackend
from sasgd_fused.options import StepNumbers
from sasgd_fused.plan import State, StepPlan

# What a CUDA graph writes when it is replayed; nobody knows when that happens for the last time.
_captured: list[Sequence[Tensor]] = []
_usable_devices: set[int] = set()


class CudaBackend(KernelBackend):
    """Norms, first updates and stale steps are kept on the device, which alone knows whether a step was skipped.

    The host learns of them later: a step looks whether a copy has arrived, `settle` waits for it.
    """

    name = "native"
    core: ModuleType = extension.core

    def __init__(self, plan: StepPlan, state: State) -> None:
        super().__init__(plan, state)
        count, blocks = len(plan.params), len(plan.blocks)
        self._kernel = self.core.CudaPlan(device=self._device_index, **self._kernel_plan())
        self._tables = torch.zeros(self._kernel.table_bytes, dtype=torch.uint8, device=plan.device)
        self._norms = torch.zeros(blocks, dtype=torch.float64, device=plan.device)
        self._stale = torch.zeros(blocks, dtype=torch.int64, device=plan.device)
        self._flags = DeviceFlags(count, self._norms)
        self._memory = (self._tables, self._norms, self._stale, self._flags.on_device)
        self._last_stream: int | None = None
        self._kernel.attach(*map(Tensor.data_ptr, self._memory), self._stream())

        self._no_momentum = array("Q", bytes(8 * count))
        self._placed: tuple[array[int], array[int]] | None = None  # the tables that the device has
        self._buffers: dict[int, Tensor] = {}  # the momentum buffers among them
        self._no_lrs = array("Q")
        self._settled: list[int] | None = None  # the list of updated parameters whose flags no step changes any more
        self._in_graph = False
        if self._freezes:
            self._take_kept_norms()

    @classmethod
    def why_not(cls, device: torch.device, dtypes: Collection[torch.dtype]) -> str | None:
        """No CUDA in the extension, or a device or driver that it cannot use."""
        if torch.version.hip:
            return "it has a kernel for CUDA, not for ROCm"
        return extension.why_not_cuda() or _why_not_device(device.index or 0)

    def step(self, numbers: StepNumbers) -> None:
        """Launches the kernel, after a norm pass over blocks that others have written."""
        active, values = self._gradients.active, numbers.values
        stream = self._stream()
        is_captured = self._kernel.is_capturing(stream)  # then nothing happens before the graph is replayed, if it is
        if is_captured:
            if not self._momentum.is_attached(active, values):
                raise RuntimeError(
                    "CUDA graph: momentum buffers cannot be made in a graph; take a step before the capture, with the "
                    "same parameters"
                )
            self._in_graph = True
            _captured.append((*self._memory, *self._weights.gapped.values()))
        elif self._flags.have_arrived():
            self._learn()
        self._momentum.attach(active, values)
        grads = self._gradients.write()
        self._find_stale()
        self._place()
        if self._weights.gapped:
            self._weights.fill_gapped()
        unmeasured = bytearray(self._unmeasured)
        self._measure_blocks(self._unmeasured_among(active))
        on_device = [self._float_on_device(number) for number in (numbers.grad_scale, numbers.found_inf)]
        lrs = {group: self._float_on_device(lr) for group, lr in numbers.device_lrs.items()}
        self._kernel.step(
            self._gradients.table,
            self._gradients.codes,
            array("d", chain.from_iterable(values)),
            self._lr_addresses(lrs, len(values)),
            *(0 if number is None else number.data_ptr() for number in on_device),
            stream,
        )
        self._momentum.launched()
        # Freed memory is used again only by work that follows on the stream.
        del grads, on_device, lrs
        if self._weights.gapped:
            self._weights.empty_gapped(active)
        self._mark_written(active)
        if is_captured:
            self._unmeasured = unmeasured
        elif self._settled is not active:
            self._note_update(active, numbers)

    def settle(self) -> None:
        """Waits for the device: frozen norms, momentum buffers that have not started, and stale steps."""
        self._learn_norms()
        if not self._freezes and not self._warned:
            self._warn_of_stale(sum(steps > 0 for steps in self.stale_steps()), stacklevel=4)

    def unstarted(self) -> list[Tensor]:
        """As `settle` found them, or as the steps since then left them."""
        params, started = self.plan.params, self.core.CUDA_STARTED
        return [
            params[index]
            for index, buffer in self._buffers.items()
            if not self._flags.known[index] & started and self._buffer_of(params[index]) is buffer
        ]

    def stale_steps(self) -> list[int]:
        """As counted on the device, which compares each carried norm with that of the weights it reads."""
        return self._stale.tolist()

    def _buffer_of(self, param: Tensor) -> Tensor | None:
        return self.state.get(param, {}).get("momentum_buffer")

    def _norm_pass(self, chosen: bytearray) -> None:
        self._place()
        self._kernel.measure(chosen, self._stream())

    def _carried_norms(self) -> list[float]:
        return self._norms.tolist()

    def _take_kept_norms(self) -> None:
        norms = [self.frozen_row_norm_sq(planned) for planned in self.plan.blocks]
        for block, (planned, frozen) in enumerate(zip(self.plan.blocks, norms, strict=True)):
            self._unmeasured[block] = frozen is None and planned.scaled
        sent = torch.tensor([norm or 0.0 for norm in norms], dtype=torch.float64, device="cpu")
        self._norms.copy_(sent, non_blocking=True)
        kept = [planned.param for planned, frozen in zip(self.plan.blocks, norms, strict=True) if frozen is not None]
        self._set_flags(self.core.CUDA_NORM_KEPT, set_in=kept, clear_in=set(self._block_of) - set(kept))
        self._kept = self._norms_in_state()

    def _place(self) -> None:
        """Sends the addresses where they are others than before."""
        tables = (self._weights.table, self._momentum.table or self._no_momentum)
        if self._placed and all(map(is_, tables, self._placed)):
            return
        self._kernel.place(*tables, self._stream())
        self._placed, self._settled = tables, None
        brought, replaced = [], []
        for index, param in enumerate(self.plan.params):
            buffer = self._buffer_of(param)
            if buffer is None or (param.numel() and not tables[1][index]):
                continue
            if self._momentum.first[index]:
                replaced += [index] if index in self._buffers else []
            elif buffer is not self._buffers.get(index):  # somebody brought it, with what it has taken
                brought.append(index)
            self._buffers[index] = buffer
        self._set_flags(self.core.CUDA_STARTED, set_in=brought, clear_in=replaced)

    def _set_flags(self, flag: int, set_in: Collection[int], clear_in: Collection[int]) -> None:
        if set_in or clear_in:
            self._flags.change(flag, set_in, clear_in)
            self._settled = None

    def _note_update(self, active: list[int], numbers: StepNumbers) -> None:
        """Notes which flags an update sets; where that depends on the device, has it tell."""
        started, norm_kept = self.core.CUDA_STARTED, self.core.CUDA_NORM_KEPT
        is_certain, is_final = numbers.found_inf is None, True
        for index in active:
            group, block = self.plan.group_of[index], self._block_of.get(index)
            sets = started if numbers.values[group].momentum != 0 else 0
            if is_certain:
                self._flags.known[index] |= sets
            if self._freezes and block is not None and self.plan.blocks[block].scaled:
                if numbers.values[group].lr != 0 or group in numbers.device_lrs:
                    sets |= norm_kept  # known once the norm is in the state
                    if is_certain and group not in numbers.device_lrs:
                        self._unmeasured[block] = 0
                elif not self._flags.known[index] & norm_kept:
                    is_final = False  # a later step will keep it
            # Empty tensors have no part in a step: `_learn` takes them with the others.
            if self.plan.params[index].numel():
                self._flags.note_possible(index, sets)
        self._flags.ask()
        if is_final and self._flags.are_known():
            self._settled = active

    def _learn_norms(self) -> None:
        if self._placed and (self._in_graph or not self._flags.are_known()):
            self._flags.ask_anew()
            self._learn()

    def _learn(self) -> None:
        """Takes in what the device told."""
        flags, norms = self._flags.take()
        if self._freezes:
            for block, planned in enumerate(self.plan.blocks):
                if flags[planned.param] & ~self._flags.known[planned.param] & self.core.CUDA_NORM_KEPT:
                    self.keep_norm(planned, norms[block], lr=1.0)
                    self._unmeasured[block] = 0
            self._kept = self._norms_in_state()
        has_started = any(flag & self.core.CUDA_STARTED for flag in flags)
        for index, flag in enumerate(flags):
            is_empty = not self.plan.params[index].numel()
            self._flags.known[index] |= self.core.CUDA_STARTED if is_empty and has_started else flag

    def _lr_addresses(self, lrs: dict[int, Tensor | None], groups: int) -> array[int]:
        if len(self._no_lrs) != groups:
            self._no_lrs = array("Q", bytes(8 * groups))
        if not lrs:
            return self._no_lrs
        addresses = array("Q", self._no_lrs)
        for group, lr in lrs.items():
            addresses[group] = lr.data_ptr() if lr is not None else 0
        return addresses

    def _float_on_device(self, number: Tensor | None) -> Tensor | None:
        if number is None:
            return None
        return number.detach().to(device=self.plan.device, dtype=torch.float32, non_blocking=True)

    def _stream(self) -> int:
        """The current stream of the device. Torch is told of each, so that memory in use is not freed."""
        stream = self._current_stream()
        if stream != self._last_stream and not self._kernel.is_capturing(stream):
            self._last_stream = stream
            self._record_stream()
        return stream

    def _current_stream(self) -> int:
        return torch.cuda.current_stream(self.plan.device).cuda_stream

    def _record_stream(self) -> None:
        for tensor in (*self._memory, *self._weights.gapped.values()):
            tensor.record_stream(torch.cuda.current_stream(self.plan.device))

    @property
    def _device_index(self) -> int:
        return self.plan.device.index or 0


def _why_not_device(index: int) -> str | None:
    """Why the kernels cannot run on a device that the driver knows, or None if they can."""
    if index not in _usable_devices:
        try:
            extension.core.check_cuda_device(index)
        except RuntimeError as error:
            return str(error)
        _usable_devices.add(index)
    return None
