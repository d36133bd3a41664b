"""The host's side of the Triton kernels: what is fixed in a plan, and the launches."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.device_state import CarriedState
from sasgd_fused.backends.triton import columns
from sasgd_fused.backends.triton.compiled import compiled_kernels
from sasgd_fused.backends.triton.device_table import DeviceTable
from sasgd_fused.backends.triton.variant import variant_of


class TritonKernel:
    """Plans steps on one device and launches them on its current stream; the twin of csrc/cuda/step.h.

    Args:
        device: of the parameters.
        carried: what it carries from step to step.
        tensors: (numel, group, dtype code of the weights) of each.
        layers: (tensor, scaled, rows, columns, m_b, is a vector) of each, input first.
        eps: floor of ‖W‖²_{2,μ}.
        shape_decay: whether d_b = weight_decay / m_b.
        track_norms: whether norms follow the weights.
        relative: whether gradients are scaled by their own norms too.
        precision: (dtype code of the parameter of float32 masters, or 0; whether float32 weights have bfloat16
            momentum; whether bfloat16 is rounded stochastically; the random numbers' stream) of each; empty if nothing
            is not plain.

    Attributes:
        is_on_host: False.
        steps: how many steps were launched. Raised before the launch, since Python may be interrupted at its return.
    """

    is_on_host = False

    def __init__(
        self,
        device: torch.device,
        carried: CarriedState,
        *,
        tensors: Sequence[tuple[int, int, int]],
        layers: Sequence[tuple[int, bool, float, float, float, bool]],
        eps: float,
        shape_decay: bool,
        track_norms: bool,
        relative: bool,
        precision: Sequence[tuple[int, bool, bool, int]] = (),
    ) -> None:
        self._device = device
        self.steps = 0
        variant = variant_of(tensors, precision, relative)
        self._carried = carried
        param_dtypes = [param_dtype for param_dtype, *_ in precision] or [0] * len(tensors)
        self._dtypes = [param or dtype for param, (_, _, dtype) in zip(param_dtypes, tensors, strict=True)]
        self._empty = [t for t, (numel, _, _) in enumerate(tensors) if numel == 0]
        self._tensor_of_layer = [tensor for tensor, *_ in layers]
        traits = [columns.STOCHASTIC.value if is_stochastic else 0 for _, _, is_stochastic, _ in precision]
        traits = traits or [0] * len(tensors)
        of_layers = (columns.SHAPE_DECAY.value if shape_decay else 0) | (columns.TRACKED.value if track_norms else 0)
        for tensor, scaled, *_, is_vector in layers:
            traits[tensor] |= of_layers | (columns.SCALED.value if scaled else 0)
            traits[tensor] |= columns.VECTOR.value if is_vector else 0
        chunks = [columns.chunks_of(numel) for numel, _, _ in tensors]
        self._chunks = sum(chunks)
        parts = self._chunks + sum(columns.tree_nodes(chunks[tensor]) for tensor in self._tensor_of_layer)
        groups = 1 + max((group for _, group, _ in tensors), default=-1)

        rows = columns.tensor_rows(tensors, self._dtypes, traits, self._tensor_of_layer)
        self._tensors = torch.tensor(rows, dtype=torch.int64).to(device)
        self._tensor_of_chunk = torch.repeat_interleave(torch.tensor(chunks, dtype=torch.int64)).to(device, torch.int32)
        layer_words = [(rows, backward_factor, eps) for _, _, rows, _, backward_factor, _ in layers]
        self._layers = torch.tensor(layer_words, dtype=torch.float64).to(device)
        self._sums = torch.zeros(2 * parts, dtype=torch.float64, device=device)
        self._one = torch.ones(1, dtype=torch.float32, device=device)
        self._zero = torch.zeros(1, dtype=torch.float32, device=device)
        self._addresses = DeviceTable(columns.ADDRESS_WORDS.value * len(tensors), torch.int64, device)
        self._grads = DeviceTable(len(tensors), torch.int64, device)
        self._groups = DeviceTable(columns.GROUP_WORDS.value * groups, torch.float64, device)
        self._chosen = DeviceTable(len(tensors), torch.int64, device)
        self._params = DeviceTable(len(tensors), torch.int64, device) if variant.has_masters else None
        self._rounding: tuple[Tensor, Tensor] | tuple[None, None] = None, None  # streams and counts
        if variant.is_stochastic:
            streams = torch.frombuffer(array("Q", [stream for *_, stream in precision]), dtype=torch.int64)
            self._rounding = streams.to(device), carried.rounding_steps
        # In the relative scale: sums over chunks, v_b, q_b.
        self._gradients: tuple[Tensor, Tensor, Tensor] | tuple[None, None, None] = None, None, None
        if relative:
            self._gradients = torch.zeros_like(self._sums), carried.gradient_norm_sq, carried.gradient_sums
        self._variant = variant
        self._group_count = groups
        self._grad_words: tuple[array[int], array[int], bytes] | None = None  # and what they were made from
        with on_device(device):
            self._kernels = compiled_kernels(device, variant)

    def memory(self) -> list[Tensor]:
        """What kernels read and write besides parameters, gradients and momentum buffers."""
        fixed = [self._tensors, self._tensor_of_chunk, self._layers, self._sums]
        fixed += [tensor for tensor in (*self._rounding, self._gradients[0]) if tensor is not None]
        sent = [self._addresses, self._grads, self._groups, self._chosen, *([self._params] if self._params else [])]
        return [*fixed, self._one, self._zero, *(tensor for table in sent for tensor in table.memory())]

    def place(self, weights: array[int], momentum_buffers: array[int], params: array[int]) -> None:
        """Sends the addresses of all weights, momentum buffers and parameters of masters (0: none)."""
        words = array("Q", bytes(16 * len(weights)))
        words[0::2], words[1::2] = weights, momentum_buffers
        self._addresses.send(words.tobytes(), captured=False)
        if self._params:
            self._params.send(params.tobytes(), captured=False)

    def measure(self, chosen: bytearray) -> None:
        """Launches a norm pass: takes the norms of the layers whose byte is 1, except of those whose norm is kept."""
        words = array("Q", bytes(8 * len(self._dtypes)))
        for tensor, is_chosen in zip(self._tensor_of_layer, chosen, strict=True):
            words[tensor] = is_chosen
        sent = self._chosen.send(words.tobytes(), self.is_capturing())
        with on_device(self._device):
            self._kernels["norm_kernel"][(self._chunks, 1, 1)](
                self._tensors,
                self._tensor_of_chunk,
                self._addresses.on_device,
                sent,
                self._sums,
                self._carried.flags,
                self._variant.has_masters,
            )
            self._kernels["finish_norm_kernel"][(len(self._dtypes), 1, 1)](
                self._tensors,
                self._layers,
                sent,
                self._sums,
                self._chunks,
                self._carried.sum_squares,
                self._carried.row_norm_sq,
                self._carried.stale_steps,
                self._carried.flags,
            )

    def step(
        self,
        grads: array[int],
        grad_dtypes: array[int],
        values: array[float],
        lrs: Mapping[int, Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        measures_gradients: bool,
    ) -> None:
        """One step, in two launches: a program for each chunk, then one for each tensor.

        Args:
            grads: the address of each gradient; 0 leaves the tensor as it is.
            grad_dtypes: the dtype code of each: the parameter's or float32's. Neither array is ever changed.
            values: the fields of `GroupValues` of each group, one after the other.
            lrs: group index → a float32 on the device that is its learning rate.
            grad_scale: float32 on the device: what the gradients were multiplied by; None for 1.
            found_inf: float32 on the device: if it is not 0, the step leaves everything as it is; None for 0.
            measures_gradients: two launches before, for the gradients of the scaled layers whose v_b is not known.
        """
        if not any(self._words_of(grads, grad_dtypes)):
            self.steps += 1
            return
        sent_grads, sent_groups = self._send(grads, grad_dtypes, values, lrs)
        grad_scale = self._one if grad_scale is None else grad_scale
        found_inf = self._zero if found_inf is None else found_inf
        with on_device(self._device):
            if measures_gradients:
                self._measure_gradients(sent_grads, sent_groups, grad_scale, found_inf)
            self.steps += 1
            self._kernels["step_kernel"][(self._chunks, 1, 1)](
                self._tensors,
                self._tensor_of_chunk,
                self._layers,
                self._addresses.on_device,
                sent_grads,
                sent_groups,
                self._sums,
                self._carried.row_norm_sq,
                self._carried.flags,
                grad_scale,
                found_inf,
                self._params.on_device if self._params else None,
                *self._rounding,
                *self._gradients[:2],
                self._variant.has_small_momentum,
            )
            self._kernels["finish_step_kernel"][(len(self._dtypes), 1, 1)](
                self._tensors,
                self._layers,
                self._addresses.on_device,
                sent_grads,
                sent_groups,
                self._sums,
                self._chunks,
                self._carried.sum_squares,
                self._carried.row_norm_sq,
                self._carried.stale_steps,
                self._carried.flags,
                found_inf,
                self._rounding[1],
                *self._gradients,
            )

    def is_capturing(self) -> bool:
        """Whether the device's current stream is recorded in a graph."""
        if self._device.type == "cpu":
            return False
        with on_device(self._device):
            return bool(torch.get_device_module(self._device).is_current_stream_capturing())

    def stream(self) -> object | None:
        """Returns the device's current stream, or None if a graph records it."""
        if self.is_capturing():
            return None
        return 0 if self._device.type == "cpu" else torch.get_device_module(self._device).current_stream(self._device)

    def _measure_gradients(self, grads: Tensor, groups: Tensor, grad_scale: Tensor, found_inf: Tensor) -> None:
        self._kernels["gradient_kernel"][(self._chunks, 1, 1)](
            self._tensors,
            self._tensor_of_chunk,
            self._addresses.on_device,
            grads,
            groups,
            grad_scale,
            found_inf,
            *self._gradients[:2],
            self._variant.has_masters,
        )
        self._kernels["finish_gradient_kernel"][(len(self._dtypes), 1, 1)](
            self._tensors,
            grads,
            self._chunks,
            self._carried.flags,
            found_inf,
            *self._gradients,
        )

    def _send(
        self, grads: array[int], grad_dtypes: array[int], values: array[float], lrs: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Sends what changed of gradients' addresses and groups' numbers; returns where they are on the device."""
        rows = [
            struct.pack("=6dQ", *values[6 * group : 6 * group + 6], lrs[group].data_ptr() if group in lrs else 0)
            for group in range(self._group_count)
        ]
        is_capturing = self.is_capturing()
        sent_grads = self._grads.send(self._words_of(grads, grad_dtypes), is_capturing)
        return sent_grads, self._groups.send(b"".join(rows), is_capturing)

    def _words_of(self, grads: array[int], grad_dtypes: array[int]) -> bytes:
        if self._grad_words is None or self._grad_words[0] is not grads or self._grad_words[1] is not grad_dtypes:
            self._grad_words = grads, grad_dtypes, self._make_words(grads, grad_dtypes)
        return self._grad_words[2]

    def _make_words(self, grads: array[int], grad_dtypes: array[int]) -> bytes:
        words = array("Q", grads)
        for t in self._empty:
            words[t] = 0
        for t, (grad_dtype, dtype) in enumerate(zip(grad_dtypes, self._dtypes, strict=True)):
            if words[t] and grad_dtype != dtype:
                words[t] |= columns.WIDE_GRADIENT.value
        return words.tobytes()


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a device the current one, on which Triton launches."""
    if device.type == "cpu":  # the interpreter
        return nullcontext()
    module = torch.get_device_module(device)
    return nullcontext() if module.current_device() == device.index else module.device(device)
