"""The native backend on NVIDIA GPUs: one launch for all tensors, and no waiting for the device in a step."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from functools import cache
from itertools import chain
from types import ModuleType

import torch
from torch import Tensor

from sasgd_fused.backends import extension
from sasgd_fused.backends.kernel import KernelBackend
from sasgd_fused.backends.readback import Readback
from sasgd_fused.options import StepNumbers
from sasgd_fused.plan import State, StepPlan

# What a CUDA graph writes when it is replayed; nobody knows when that happens for the last time.
_captured: list[Sequence[Tensor]] = []


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
        self._flags = torch.zeros(count, dtype=torch.uint8, device=plan.device)
        self._memory = (self._tables, self._norms, self._stale, self._flags)
        self._last_stream: int | None = None
        self._in_graph = False
        self._kernel.attach(*map(Tensor.data_ptr, self._memory), self._stream())

        self._no_momentum = array("Q", bytes(8 * count))
        self._placed: tuple[array[int], array[int]] | None = None  # tables as they are on the device
        self._buffers: dict[int, Tensor] = {}  # the momentum buffers among them
        self._no_lrs = array("Q")
        # What is known of the device's flags. Empty tensors have no part in a step.
        self._known = bytearray(0 if param.numel() else self.core.CUDA_STARTED for param in plan.params)
        self._settled: list[int] | None = None  # the list of updated parameters about which all is known
        self._readback: Readback | None = None
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
        active = self._gradients.active
        # While a graph is captured, CUDA answers no questions.
        if self._readback and not self._is_capturing() and self._readback.has_arrived():
            self._learn()
        first = self._momentum.attach(active, numbers.values)
        grads = self._gradients.write()
        self._find_stale()
        self._place(first)
        if self._weights.gapped:
            self._weights.fill_gapped()
        self._measure_blocks(self._unmeasured_among(active))
        on_device = [self._float_on_device(number) for number in (numbers.grad_scale, numbers.found_inf)]
        lrs = {group: self._float_on_device(lr) for group, lr in numbers.device_lrs.items()}
        self._kernel.step(
            self._gradients.table,
            self._gradients.codes,
            array("d", chain.from_iterable(numbers.values)),
            self._lr_addresses(lrs, len(numbers.values)),
            *(0 if number is None else number.data_ptr() for number in on_device),
            self._stream(),
        )
        # Freed memory is used again only by work that follows on the stream.
        del grads, on_device, lrs
        if self._weights.gapped:
            self._weights.empty_gapped(active)
        self._mark_written(active)
        if self._settled is not active:
            self._note_update(active, numbers)

    def settle(self) -> None:
        """Waits for the device: frozen norms, momentum buffers that have not started, and stale steps."""
        if self._placed and self._settled is None:
            self._readback = Readback((self._flags, self._norms))
            self._learn()
        if not self._freezes and not self._warned:
            self._warn_of_stale(sum(steps > 0 for steps in self.stale_steps()), stacklevel=4)

    def unstarted(self) -> list[Tensor]:
        """As `settle` found them, or as the steps since then left them; empty ones go with the others."""
        plan, started = self.plan, self.core.CUDA_STARTED
        waiting = [
            plan.params[index]
            for index, buffer in self._buffers.items()
            if not self._known[index] & started and self._buffer_of(plan.params[index]) is buffer
        ]
        if waiting:
            waiting += [param for param in plan.params if not param.numel() and self._buffer_of(param) is not None]
        return waiting

    def stale_steps(self) -> list[int]:
        """As counted on the device, which compares each carried norm with that of the weights it reads."""
        return self._stale.tolist()

    def _buffer_of(self, param: Tensor) -> Tensor | None:
        return self.state.get(param, {}).get("momentum_buffer")

    def _norm_pass(self, chosen: bytearray) -> None:
        self._place(bytes(len(self._known)))
        self._kernel.measure(chosen, self._stream())

    def _carried_norms(self) -> list[float]:
        return self._norms.tolist()

    def _take_kept_norms(self) -> None:
        if self._placed and self._settled is None:  # the flags are about to be sent as a whole
            for index, flag in enumerate(self._flags.tolist()):
                self._known[index] |= flag & self.core.CUDA_STARTED
        norms = [self.frozen_row_norm_sq(planned) for planned in self.plan.blocks]
        for block, (planned, frozen) in enumerate(zip(self.plan.blocks, norms, strict=True)):
            self._unmeasured[block] = frozen is None and planned.scaled
            self._known[planned.param] &= ~self.core.CUDA_NORM_KEPT
            if frozen is not None:
                self._known[planned.param] |= self.core.CUDA_NORM_KEPT
        sent = torch.tensor([norm or 0.0 for norm in norms], dtype=torch.float64, device="cpu")
        self._norms.copy_(sent, non_blocking=True)
        self._kept = self._norms_in_state()
        self._placed = self._settled = self._readback = None

    def _place(self, first: bytes) -> None:
        """Sends addresses and flags where they are others than before."""
        tables = (self._weights.table, self._momentum.table or self._no_momentum)
        if self._placed and all(map(lambda a, b: a is b, tables, self._placed)):
            return
        if self._placed and self._settled is None:  # the flags are sent as a whole
            self._readback = Readback((self._flags, self._norms))
            self._learn()
        for index, address in enumerate(tables[1]):
            if address:
                buffer = self.state[self.plan.params[index]]["momentum_buffer"]
                if first[index]:
                    self._known[index] &= ~self.core.CUDA_STARTED
                elif buffer is not self._buffers.get(index):  # somebody brought it, with what it has taken
                    self._known[index] |= self.core.CUDA_STARTED
                self._buffers[index] = buffer
        self._kernel.place(*tables, self._known, self._stream())
        self._placed, self._settled, self._readback = tables, None, None

    def _note_update(self, active: list[int], numbers: StepNumbers) -> None:
        """Notes what an update does to the flags; where that depends on the device, has it tell."""
        started, norm_kept = self.core.CUDA_STARTED, self.core.CUDA_NORM_KEPT
        is_known = True
        for index in active:
            expected = started if self._placed and self._placed[1][index] else 0
            block = self._block_of.get(index)
            if self._freezes and block is not None and self.plan.blocks[block].scaled:
                group = self.plan.group_of[index]
                expected |= norm_kept  # until the norm is in the state
                if numbers.found_inf is None and numbers.values[group].lr != 0:
                    self._unmeasured[block] = 0
            if numbers.found_inf is None:
                self._known[index] |= expected & started
            is_known = is_known and expected & ~self._known[index] == 0
        if is_known:
            self._settled = active
        elif self._readback is None and not self._is_capturing():
            self._readback = Readback((self._flags, self._norms))

    def _learn(self) -> None:
        """Takes in what the device told."""
        assert self._readback
        flags, norms = (copy.tolist() for copy in self._readback.wait())
        self._readback = None
        for index, flag in enumerate(flags):
            self._known[index] |= flag
        if self._freezes:
            for block, planned in enumerate(self.plan.blocks):
                if planned.scaled and flags[planned.param] & self.core.CUDA_NORM_KEPT:
                    self.keep_norm(planned, norms[block], lr=1.0)
                    self._unmeasured[block] = 0
            self._kept = self._norms_in_state()

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
        if self._is_capturing():
            if not self._in_graph:
                self._in_graph = True
                _captured.append(self._memory)
        elif stream != self._last_stream:
            self._last_stream = stream
            self._record_stream()
        return stream

    def _current_stream(self) -> int:
        return torch.cuda.current_stream(self.plan.device).cuda_stream

    def _record_stream(self) -> None:
        for tensor in self._memory:
            tensor.record_stream(torch.cuda.current_stream(self.plan.device))

    def _is_capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    @property
    def _device_index(self) -> int:
        return self.plan.device.index or 0


@cache
def _why_not_device(index: int) -> str | None:
    """Why the kernels cannot run on a device that the driver knows, or None if they can."""
    try:
        extension.core.check_cuda_device(index)
    except RuntimeError as error:
        return str(error)
    return None
