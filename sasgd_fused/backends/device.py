"""What the backends on devices share: what the host knows of the device, and when; no waiting for it in a step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.device_flags import NORM_KEPT, STARTED, DeviceFlags
from sasgd_fused.backends.kernel import KernelBackend
from sasgd_fused.backends.readback import Readback
from sasgd_fused.backends.rounding_steps import RoundingSteps
from sasgd_fused.hyperparameters import GroupValues, StepNumbers
from sasgd_fused.plan import State, StepPlan

# What a CUDA graph reads and writes when it is replayed, by id; nobody knows when that happens for the last time.
_captured: dict[int, Tensor] = {}


class DeviceBackend(KernelBackend):
    """Norms, first updates and stale steps are kept on the device, which alone knows whether a step was skipped.

    The host learns of them later: a step looks whether a copy has arrived, `settle` waits for it. Subclasses send
    tables and launch kernels, on the current stream.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        super().__init__(plan, state)
        count, blocks = len(plan.params), len(plan.blocks)
        self._norms = torch.zeros(blocks, dtype=torch.float64, device=plan.device)
        self._stale = torch.zeros(blocks, dtype=torch.int64, device=plan.device)
        self._flags = DeviceFlags(count, self._norms)
        self._rounding = RoundingSteps(plan, state)
        self._last_stream: object = None

        self._no_momentum = array("Q", bytes(8 * count))
        self._placed: tuple[array[int], ...] | None = None  # the tables that the device has
        self._buffers: dict[int, Tensor] = {}  # the momentum buffers among them
        self._settled: list[int] | None = None  # the list of updated parameters whose flags no step changes any more
        self._entries: dict[int, dict[str, Any] | None] = {}  # of the state: where a norm on its way will be kept
        self._in_graph = False
        if self._freezes:
            self._take_kept_norms()

    def step(self, numbers: StepNumbers) -> None:
        """Launches the kernel, after a norm pass over blocks that others have written."""
        active, values = self._gradients.active, numbers.values
        is_captured = self._is_capturing()  # then nothing happens before the graph is replayed, if it is
        if is_captured:
            if not self._momentum.is_attached(active, values):
                raise RuntimeError(
                    "CUDA graph: momentum buffers cannot be made in a graph; take a step before the capture, with the "
                    "same parameters"
                )
            if (self._masters and not self._masters.are_current()) or not self._rounding.are_current():
                raise RuntimeError(
                    "CUDA graph: master weights cannot be made, nor counts of rounding be sent, in a graph; take a "
                    "step before the capture"
                )
            self._in_graph = True
        else:
            self._note_stream()
            if self._flags.have_arrived():
                self._learn()
        self._momentum.attach(active, values)
        grads = self._gradients.write()
        self.follow_parameters()
        self._rounding.send()
        self._find_stale()
        self._place()
        if self._weights.gapped:
            self._weights.fill_gapped()
        unmeasured = bytearray(self._unmeasured)
        grad_scale, found_inf = (
            None if number is None else self._float_on_device(number)
            for number in (numbers.grad_scale, numbers.found_inf)
        )
        lrs = {group: self._float_on_device(lr) for group, lr in numbers.device_lrs.items()}
        steps = self._launched_steps()
        try:
            self._measure_blocks(self._unmeasured_among(active))
            self._launch_step(values, lrs, grad_scale, found_inf)
        finally:
            if is_captured:
                _captured.update((id(tensor), tensor) for tensor in self._memory())
            if self._launched_steps() != steps:  # an interrupt comes after the launch, but before this
                self._note_step(active, numbers, is_captured)
            if is_captured:
                self._unmeasured = unmeasured
        del grads  # freed memory is used again only by work that follows on the stream

    def _note_step(self, active: list[int], numbers: StepNumbers, is_captured: bool) -> None:
        self._momentum.launched()
        self._rounding.note_step()
        if self._weights.gapped:
            self._weights.empty_gapped(active)
        self._mark_written(active)
        if not is_captured and self._settled is not active:
            self._note_update(active, numbers)

    def settle(self) -> None:
        """Waits for the device, if it knows more: frozen norms, momentum buffers that have not started, counts."""
        self._learn_norms()
        self._rounding.learn(may_be_replayed=self._in_graph)

    def warn_if_stale(self) -> None:
        """As counted on the device, which is waited for."""
        if not self._freezes and not self._warned:
            self._warn_of_stale(sum(steps > 0 for steps in self.stale_steps()), stacklevel=4)

    def report(self) -> tuple[list[float], list[int]]:
        """Waits for the device once, or not at all where all norms are frozen."""
        kept = [self.frozen_row_norm_sq(planned) for planned in self.plan.blocks]
        missing = [planned for planned, norm in zip(self.plan.blocks, kept, strict=True) if norm is None]
        self._bring_up_to_date(missing)
        if not missing:
            return [norm for norm in kept if norm is not None], [0] * len(kept)
        carried, stale = (copy.tolist() for copy in Readback((self._norms, self._stale)).wait())
        if not self._freezes:
            self._warn_of_stale(sum(steps > 0 for steps in stale), stacklevel=4)
        return [norm if frozen is None else frozen for norm, frozen in zip(carried, kept, strict=True)], stale

    def unstarted(self) -> list[Tensor]:
        """As `settle` found them, or as the steps since then left them."""
        params = self.plan.params
        return [
            params[index]
            for index, buffer in self._buffers.items()
            if not self._flags.known[index] & STARTED and self._buffer_of(params[index]) is buffer
        ]

    def stale_steps(self) -> list[int]:
        """As counted on the device, which compares each carried norm with that of the weights it reads."""
        return self._stale.tolist()

    def _buffer_of(self, param: Tensor) -> Tensor | None:
        return self.state.get(param, {}).get("momentum_buffer")

    def _send_addresses(self, weights: array[int], momentum_buffers: array[int], copies: array[int]) -> None:
        """Sends the addresses of all weights, momentum buffers and copies (0: none) to the device; not in a capture.

        Args:
            weights: of each tensor; of its master where it has one.
            momentum_buffers: of each tensor.
            copies: of the parameter that a master is rounded to.
        """
        raise NotImplementedError

    def _launch_norm_pass(self, chosen: bytearray) -> None:
        """Launches a norm pass over the blocks whose byte is 1."""
        raise NotImplementedError

    def _launch_step(
        self,
        values: Sequence[GroupValues],
        lrs: Mapping[int, Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Launches a step over the gradients' table; tensors are of one float32 on the device.

        Args:
            values: of each group.
            lrs: group index → its learning rate, in the place of that in the values.
            grad_scale: what the gradients were multiplied by, or None for 1.
            found_inf: not 0 if nothing is to be changed; None for 0.
        """
        raise NotImplementedError

    def _launched_steps(self) -> int:
        """How many steps were launched so far."""
        raise NotImplementedError

    def _is_capturing(self) -> bool:
        """Whether what is put on the current stream is recorded in a graph."""
        raise NotImplementedError

    def _current_stream(self) -> object:
        """The current stream of the device, in whatever form it can be compared."""
        return torch.get_device_module(self.plan.device).current_stream(self.plan.device)

    def _sum_squares(self) -> Tensor:
        """Of each block's weights, float64 on the device, as the kernel carries it."""
        raise NotImplementedError

    def local_norms(self) -> Tensor:
        """From the sums of squares that the kernel carries; does not wait for it."""
        rows = torch.tensor([planned.block.rows for planned in self.plan.blocks], dtype=torch.float64)
        return self._sum_squares() / rows.to(self.plan.device, non_blocking=True)

    def take_norms(self, norms: Tensor) -> None:
        """The kernel goes by them until it leaves others."""
        self._norms.copy_(norms)

    def _memory(self) -> list[Tensor]:
        """What lives on the device from step to step."""
        own = [self._norms, self._stale, self._flags.on_device, self._rounding.on_device]
        return [*own, *self._weights.gapped.values()]

    def _norm_pass(self, chosen: bytearray) -> None:
        if not self._is_capturing():
            self._note_stream()
        self._place()
        self._launch_norm_pass(chosen)

    def _carried_norms(self) -> list[float]:
        return self._norms.tolist()

    def _take_kept_norms(self) -> None:
        norms = [self.frozen_row_norm_sq(planned) for planned in self.plan.blocks]
        for block, (planned, frozen) in enumerate(zip(self.plan.blocks, norms, strict=True)):
            self._unmeasured[block] = frozen is None and planned.scaled
        sent = torch.tensor([norm or 0.0 for norm in norms], dtype=torch.float64, device="cpu")
        self._norms.copy_(sent, non_blocking=True)
        kept = [planned.param for planned, frozen in zip(self.plan.blocks, norms, strict=True) if frozen is not None]
        self._set_flags(NORM_KEPT, set_in=kept, clear_in=set(self._block_of) - set(kept))
        self._kept = self._norms_in_state()

    def _place(self) -> None:
        """Sends the addresses where they are others than before."""
        tables = (self._weights.table, self._momentum.table or self._no_momentum, self._weights.copies)
        if self._placed and all(map(is_, tables, self._placed)):
            return
        if self._is_capturing():
            raise RuntimeError(
                "CUDA graph: tables of addresses have to be sent to the device, which a graph cannot record; take a "
                "step before the capture, with the same parameters"
            )
        self._send_addresses(*tables)
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
        self._set_flags(STARTED, set_in=brought, clear_in=replaced)

    def _set_flags(self, flag: int, set_in: Collection[int], clear_in: Collection[int]) -> None:
        if set_in or clear_in:
            self._flags.change(flag, set_in, clear_in)
            self._settled = None

    def _note_update(self, active: list[int], numbers: StepNumbers) -> None:
        """Notes which flags an update sets; where that depends on the device, has it tell."""
        is_certain, is_final = numbers.found_inf is None, True
        for index in active:
            group, block = self.plan.group_of[index], self._block_of.get(index)
            sets = STARTED if numbers.values[group].momentum != 0 else 0
            if is_certain:
                self._flags.known[index] |= sets
            if self._freezes and block is not None and self.plan.blocks[block].scaled:
                if numbers.values[group].lr != 0 or group in numbers.device_lrs:
                    sets |= NORM_KEPT  # if the norm is finite; known once it is in the state
                    self._entries[block] = self.state.get(self.plan.params[index])
                elif not self._flags.known[index] & NORM_KEPT:
                    is_final = False  # a later step will keep it
                    if is_certain:
                        self.keep_norm(self.plan.blocks[block], math.nan, lr=0.0)
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
                if flags[planned.param] & ~self._flags.known[planned.param] & NORM_KEPT:
                    self.keep_norm(planned, norms[block], lr=1.0, entry=self._entries.get(block))
                if planned.scaled:  # a norm that is not finite is not kept
                    self._unmeasured[block] = self.frozen_row_norm_sq(planned) is None
            self._kept = [norms[b] for b, planned in enumerate(self.plan.blocks) if flags[planned.param] & NORM_KEPT]
            self._seen = None
        has_started = any(flag & STARTED for flag in flags)
        for index, flag in enumerate(flags):
            is_empty = not self.plan.params[index].numel()
            self._flags.known[index] |= STARTED if is_empty and has_started else flag

    def _float_on_device(self, number: Tensor) -> Tensor:
        return number.detach().to(device=self.plan.device, dtype=torch.float32, non_blocking=True)

    def _note_stream(self) -> None:
        """Tells torch of each stream that uses the memory, so that it is not freed too early."""
        stream = self._current_stream()
        if stream != self._last_stream:
            self._last_stream = stream
            self._record_stream()

    def _record_stream(self) -> None:
        stream = torch.get_device_module(self.plan.device).current_stream(self.plan.device)
        for tensor in self._memory():
            tensor.record_stream(stream)
