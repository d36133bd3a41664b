"""What a kernel keeps on the device from step to step, and what the host knows of it without waiting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sasgd_fused.plan import State, StepPlan

# Bits of a parameter's flags, as in csrc/plan.h.
STARTED = 1  # the momentum buffer has taken its first gradient
NORM_KEPT = 2  # frozen norms: the scaled layer's norm stays as it is
GRADIENT_KNOWN = 4  # the relative scale: gradient_norm_sq is not 0

# What a CUDA graph reads and writes when it is replayed, by id; nobody knows when that happens for the last time.
_captured: dict[int, Tensor] = {}


class CarriedState(NamedTuple):
    """The memory that a kernel carries from step to step.

    A new field needs: its name in `CarriedState` of csrc/plan_base.h, in `checked_state` of csrc/python_arguments.h and
    in both `attach` of the bindings, in this order; csrc/cuda/tables.h; the launches of triton/kernel.py, the kernels'
    arguments and their dtypes in triton/compiled.py.

    Attributes:
        row_norm_sq: float64 for each layer, ‖W‖²_{2,μ} as the next step will use it.
        sum_squares: float64 for each layer, of the weights as the last step or norm pass left them.
        stale_steps: int64 for each layer: how many steps used the norm of weights that had been written unseen.
        flags: uint8 for each parameter: `STARTED`, `NORM_KEPT`, `GRADIENT_KNOWN`.
        rounding_steps: int64 for each parameter: how many steps were rounded stochastically.
        gradient_norm_sq: float64 for each parameter: v_b of the relative scale; 0: not known.
        gradient_sums: float64 for each parameter: q_b of the last step in the relative scale.
    """

    row_norm_sq: Tensor
    sum_squares: Tensor
    stale_steps: Tensor
    flags: Tensor
    rounding_steps: Tensor
    gradient_norm_sq: Tensor
    gradient_sums: Tensor


class DeviceState:
    """Holds the memory that a kernel carries. The host learns of it late; on the CPU, at once.

    Args:
        plan: what the kernel is for.
        state: the optimizer's.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        def zeros(count: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(count, dtype=dtype, device=plan.device)

        params, layers = len(plan.params), len(plan.layers)
        self.carried = CarriedState(
            zeros(layers, torch.float64),
            zeros(layers, torch.float64),
            zeros(layers, torch.int64),
            zeros(params, torch.uint8),
            zeros(params, torch.int64),
            zeros(params, torch.float64),
            zeros(params, torch.float64),
        )
        self.flags = Flags(self.carried)
        rounded = {k: p for k, p in enumerate(plan.params) if plan.precisions[k].is_stochastic and p.numel()}
        self.rounding_steps = CarriedEntry("rounding_step", state, rounded, self.carried.rounding_steps)
        self._device = plan.device
        self._last_stream: object = None

    def note_stream(self, stream: object | None, memory: Callable[[], Sequence[Tensor]]) -> None:
        """Tells torch of each stream that uses memory of the kernel's, so that it is not freed too early."""
        if stream is None or stream == self._last_stream:
            return
        self._last_stream = stream
        if self._device.type != "cpu":
            current = torch.get_device_module(self._device).current_stream(self._device)
            for tensor in memory():
                tensor.record_stream(current)

    def keep_for_graph(self, memory: Sequence[Tensor]) -> None:
        """Keeps memory of the kernel's for as long as the process lives: a graph may be replayed at any time."""
        _captured.update((id(tensor), tensor) for tensor in memory)

    def read_norms(self) -> tuple[list[float], list[int]]:
        """Returns `row_norm_sq` and `stale_steps`, after waiting for the device once."""
        norms, stale = Readback((self.carried.row_norm_sq, self.carried.stale_steps)).wait()
        return norms.tolist(), stale.tolist()

    def send_norms(self, norms: Sequence[float]) -> None:
        """Puts norms in the place of the carried ones."""
        sent = torch.tensor(norms, dtype=torch.float64, device="cpu")
        self.carried.row_norm_sq.copy_(sent, non_blocking=True)


class Flags:
    """Bits that a kernel sets for each parameter.

    Args:
        carried: the memory with the flags and norms; what is asked of the flags comes with a copy of the norms.

    Attributes:
        known: the bits that are set for certain.
        settled: updated parameters of which no step like the last one sets more bits.
    """

    def __init__(self, carried: CarriedState) -> None:
        self.known = bytearray(len(carried.flags))
        self.settled: list[int] | None = None
        self._flags, self._norms = carried.flags, carried.row_norm_sq
        self._is_ahead = False  # the device may have set bits of which it was not asked
        self._is_under_way = False  # a step has begun and not ended, maybe for an interrupt
        self._readback: Readback | None = None

    def change(self, bit: int, set_in: Collection[int], clear_in: Collection[int]) -> None:
        """Sets and clears a bit of some parameters, on the device and here."""
        if not set_in and not clear_in:
            return
        cleared, added = bytearray(b"\xff" * len(self.known)), bytearray(len(self.known))
        for index in clear_in:
            cleared[index] = 0xFF & ~bit
            self.known[index] &= ~bit
        for index in set_in:
            added[index] = bit
            self.known[index] |= bit
        for apply, flags in ((self._flags.bitwise_and_, cleared), (self._flags.bitwise_or_, added)):
            apply(torch.frombuffer(flags, dtype=torch.uint8).to(self._flags.device, non_blocking=True))
        # What the device was about to tell is not true any more.
        self.settled = None
        self._is_ahead, self._readback = self._is_ahead or self._readback is not None, None

    def begin_step(self) -> None:
        """Notes that a step is about to set bits."""
        self._is_ahead, self._is_under_way = self._is_ahead or self._is_under_way, True

    def end_step(self) -> None:
        """Notes that what the step may have set is noted."""
        self._is_under_way = False

    def note_possible(self, index: int, bits: int) -> None:
        """Notes that a step has set bits of a parameter, if it was not skipped."""
        self._is_ahead = self._is_ahead or bool(bits & ~self.known[index])

    def are_known(self) -> bool:
        """Returns whether no bit is set on the device that is not known."""
        return not self._is_ahead and not self._is_under_way and self._readback is None

    def ask(self, anew: bool = False) -> None:
        """Has the device tell, unless it has nothing to tell or is about to.

        Args:
            anew: has it tell in any case how things are after all work so far.
        """
        if anew or (self._is_ahead and self._readback is None):
            self._readback = Readback((self._flags, self._norms))
            self._is_ahead = self._is_under_way = False

    def have_arrived(self) -> bool:
        """Returns whether the device has been asked and has told."""
        return self._readback is not None and self._readback.has_arrived()

    def take(self) -> tuple[list[int], list[float]]:
        """Waits for what was asked: the flags and the norms. The caller adds to `known`, then calls `end_taking`."""
        assert self._readback
        flags, norms = (copy.tolist() for copy in self._readback.wait())
        return flags, norms

    def end_taking(self) -> None:
        """Notes that the caller has kept all that it took."""
        self._readback = None


class CarriedEntry:
    """Keeps an entry of each parameter's state on the device, where a kernel goes on with it, and brings it back.

    Args:
        key: in the state, where it is a number; what is missing or 0 there is the same.
        state: the optimizer's.
        params: those that have the entry, by their index.
        on_device: a number for each parameter of the plan.
    """

    def __init__(self, key: str, state: State, params: Mapping[int, Tensor], on_device: Tensor) -> None:
        self._key = key
        self._state = state
        self._params = params
        self._on_device = on_device
        self._seen: list[float | None] = [None] * len(params)  # what the state said when it was last looked at
        self._is_ahead = False

    def __bool__(self) -> bool:
        """Returns whether any parameter has it."""
        return bool(self._params)

    def are_sent(self) -> bool:
        """Returns whether the device goes by what the state says, as far as others have changed that."""
        return not self._params or self._in_state() == self._seen

    def send(self) -> None:
        """Has the device go by what others put into the state."""
        if self.are_sent():
            return
        numbers = self._in_state()
        for index, number, seen in zip(self._params, numbers, self._seen, strict=True):
            if number != seen:
                self._on_device[index] = number or 0
        self._seen = numbers

    def note_step(self, active: Collection[int]) -> bool:
        """Notes that the device may go on with these parameters.

        Returns:
            Whether it wrote a number into the state, by which it is seen if somebody empties that.
        """
        self._is_ahead = bool(self._params)
        if None not in self._seen:
            return False
        for index in self._params.keys() & active:
            self._state[self._params[index]].setdefault(self._key, 0)
        self._seen = self._in_state()
        return True

    def learn(self, may_be_replayed: bool) -> None:
        """Brings the device's numbers into the state; waits for it.

        Args:
            may_be_replayed: a graph may have gone on unseen.
        """
        if not self._is_ahead and not (may_be_replayed and self._params):
            return
        self.send()
        numbers = self._on_device.tolist()
        for index, param in self._params.items():
            if numbers[index]:
                self._state[param][self._key] = numbers[index]
            elif param in self._state:
                self._state[param].pop(self._key, None)
        self._seen, self._is_ahead = self._in_state(), False

    def _in_state(self) -> list[float | None]:
        return [self._state[param].get(self._key) if param in self._state else None for param in self._params.values()]


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
        """Returns whether the copies are complete."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> list[Tensor]:
        """Returns the copies, after waiting for them if need be."""
        if self._event:
            self._event.synchronize()
        return self._copies
