"""The norms that a kernel carries from step to step: which are measured anew, kept, given by others, reported."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.device_state import NORM_KEPT, DeviceState
from sasgd_fused.backends.norms import FrozenNorms
from sasgd_fused.plan import State, StepPlan


class CarriedNorms:
    """Norms that a kernel leaves for its next step, so that no pass over the weights is needed.

    They are measured, by a norm pass, of layers that others have written since. Where norms freeze the kernel keeps
    each one from its first update on, and tells late.

    Args:
        plan: whose layers.
        state: the optimizer's.
        device: where the kernel keeps norms and flags.
        norm_pass: takes the norms of the layers whose byte is 1 from their weights.
        not_measurable: returns the indices of the parameters of whose weights no norm can be taken now.

    Attributes:
        must_measure: 1 for each layer whose carried norm is not the one to be used. Where norms track the weights, a
            norm pass clears it; where they freeze, the keeping does. A step that does not happen now (CUDA graphs)
            puts it back.
    """

    def __init__(
        self,
        plan: StepPlan,
        state: State,
        device: DeviceState,
        norm_pass: Callable[[bytearray], None],
        not_measurable: Callable[[], Collection[int]],
    ) -> None:
        self.frozen = FrozenNorms(plan, state)
        self._plan = plan
        self._state = state
        self._device = device
        self._norm_pass = norm_pass
        self._not_measurable = not_measurable
        self._layer_of = {planned.param: b for b, planned in enumerate(plan.layers)}
        self.must_measure = bytearray(b"\1" * len(plan.layers))
        self._is_given = False
        self._has_warned = False
        self._kept: list[float | None] = []  # the frozen norms that the kernel has, one for each layer
        self._entries: dict[int, dict[str, Any] | None] = {}  # of the state: where a norm on its way will be kept
        if self.frozen.is_on:
            self._send_frozen()

    def mark(self, params: Iterable[int] | None = None) -> None:
        """Marks norms that track the weights to be measured: of the parameters with these indices, or of all."""
        if self.frozen.is_on or self._is_given:
            return
        if params is None:
            self.must_measure = bytearray(b"\1" * len(self.must_measure))
            return
        for index in params:
            if index in self._layer_of:
                self.must_measure[self._layer_of[index]] = 1

    def follow_state(self, learn: Callable[[], None]) -> None:
        """Has the kernel go by the frozen norms in the state, if somebody emptied or edited it.

        Args:
            learn: brings into the state what only the device knows.
        """
        if self.frozen.is_on and not self._is_given and self._in_state() != self._kept:
            learn()
            self._send_frozen()

    def measure_marked(self, params: Collection[int]) -> None:
        """Measures the norms of these parameters' layers that `must_measure` marks, by a norm pass."""
        if len(params) == len(self._plan.params):
            self._measure([layer for layer, marked in enumerate(self.must_measure) if marked])
            return
        updated = set(params)
        self._measure([b for b, p in enumerate(self._plan.layers) if self.must_measure[b] and p.param in updated])

    def note_update(self, index: int, has_lr: bool, is_certain: bool) -> tuple[int, bool]:
        """Notes that a step has updated a parameter, for `learn`.

        Args:
            index: of the parameter.
            has_lr: whether its learning rate is not zero, as far as is known.
            is_certain: whether the step was not skipped.

        Returns:
            The flags that the kernel may have set, and whether no later step will set more.
        """
        layer = self._layer_of.get(index)
        if not self.frozen.is_on or layer is None or not self._plan.layers[layer].scaled:
            return 0, True
        if has_lr:  # kept if it is finite
            if not self._device.flags.known[index] & NORM_KEPT:
                self._entries[layer] = self._state.get(self._plan.params[index])
            return NORM_KEPT, True
        if self._device.flags.known[index] & NORM_KEPT:
            return 0, True
        if is_certain and not self._is_given:
            self.frozen.keep(self._plan.layers[layer], math.nan, is_update=False)
        return 0, False

    def learn(self, flags: Sequence[int], norms: Sequence[float]) -> None:
        """Keeps the norms in the state of which the device tells that they are frozen."""
        if not self.frozen.is_on:
            return
        known = self._device.flags.known
        for layer, planned in enumerate(self._plan.layers):
            if flags[planned.param] & ~known[planned.param] & NORM_KEPT and not self._is_given:
                self.frozen.keep(planned, norms[layer], is_update=True, entry=self._entries.pop(layer, None))
            if planned.scaled and not self._is_given:  # a norm that is not finite is not kept
                self.must_measure[layer] = self.frozen.get(planned) is None
        are_kept = (flags[planned.param] & NORM_KEPT for planned in self._plan.layers)
        self._kept = [norm if is_kept else None for norm, is_kept in zip(norms, are_kept, strict=True)]

    def give(self, norms: Tensor) -> None:
        """Has the kernel use these norms until it leaves others: the weights are parts of larger ones."""
        self._is_given = True
        self.must_measure = bytearray(len(self.must_measure))
        self._device.carried.row_norm_sq.copy_(norms)

    def of_parts(self) -> Tensor:
        """Returns the sum of squares / rows of each layer as the last pass left it; does not wait for the device."""
        rows = torch.tensor([planned.layer.rows for planned in self._plan.layers], dtype=torch.float64)
        return self._device.carried.sum_squares / rows.to(self._plan.device, non_blocking=True)

    def measure_all(self) -> None:
        """Measures all norms, which gives the bits that a step would leave."""
        self._measure(range(len(self.must_measure)))

    def report(self) -> tuple[list[float], list[int]]:
        """Returns the norm of every layer, as the next step will use it, and how many steps used stale ones.

        Waits for the device once, or not at all where all norms are frozen.
        """
        kept = [self.frozen.get(planned) for planned in self._plan.layers]
        missing = [b for b, norm in enumerate(kept) if norm is None]
        self._measure([b for b in missing if self.must_measure[b] or self.frozen.is_on])
        if not missing:
            return [norm for norm in kept if norm is not None], [0] * len(kept)
        carried, stale = self._device.read_norms()
        spoilt = [] if self.frozen.is_on else [b for b in missing if not math.isfinite(carried[b])]
        if spoilt and not self._is_given:  # others may have put the weights right since, unseen
            self._measure(spoilt)
            carried, stale = self._device.read_norms()
        if not self.frozen.is_on:
            self.warn(sum(steps > 0 for steps in stale), stacklevel=5)
        return [norm if frozen is None else frozen for norm, frozen in zip(carried, kept, strict=True)], stale

    def stale_steps(self) -> list[int]:
        """Returns how many steps of each layer used a norm that was not that of the weights it read."""
        steps: list[int] = self._device.carried.stale_steps.tolist()
        return steps

    def warn_if_stale(self) -> None:
        """Warns, once, of stale steps; may wait for the device."""
        if not self.frozen.is_on and not self._has_warned:
            self.warn(sum(steps > 0 for steps in self.stale_steps()), stacklevel=4)

    def warn(self, layers: int, stacklevel: int) -> None:
        """Warns, once, that so many layers had a stale step."""
        if not layers or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"the weights of {layers} layers were written between two steps in a way that no version counter shows "
            "(.data, a raw pointer), so that a step scaled their gradients by the norms of the weights before. Call "
            "refresh_norms() after such writes; layer_report() counts these steps",
            stacklevel=stacklevel + 1,
        )

    def forget(self) -> None:
        """Has the norms taken anew from the weights at the next step."""
        self.frozen.forget()
        if self.frozen.is_on:
            self._send_frozen()
        else:
            self.mark()

    def _measure(self, layers: Sequence[int]) -> None:
        without = self._not_measurable()
        there = [layer for layer in layers if self._plan.layers[layer].param not in without] if without else layers
        if not there:
            return
        chosen = bytearray(len(self.must_measure))
        for layer in there:
            chosen[layer] = 1
        self._norm_pass(chosen)
        if not self.frozen.is_on:
            for layer in there:
                self.must_measure[layer] = 0

    def _in_state(self) -> list[float | None]:
        return list(map(self.frozen.get, self._plan.layers))

    def _send_frozen(self) -> None:
        """Gives the kernel the norms that the state holds."""
        norms = [self.frozen.get(planned) for planned in self._plan.layers]
        for layer, (planned, frozen) in enumerate(zip(self._plan.layers, norms, strict=True)):
            self.must_measure[layer] = frozen is None and planned.scaled and not self._is_given
        kept = [planned.param for planned, norm in zip(self._plan.layers, norms, strict=True) if norm is not None]
        self._device.send_norms([norm or 0.0 for norm in norms])
        self._device.flags.change(NORM_KEPT, set_in=kept, clear_in=set(self._layer_of) - set(kept))
        self._kept = self._in_state()
