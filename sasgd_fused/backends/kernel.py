"""What a kernel is to the host, and the two of the compiled extension: for the CPU and for NVIDIA GPUs."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sasgd_fused.backends import extension
from sasgd_fused.backends.device_state import CarriedState
from sasgd_fused.hyperparameters import GroupValues
from sasgd_fused.plan import StepPlan
from sasgd_fused.precision import Precision

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_usable_devices: set[int] = set()


class SentNumbers(NamedTuple):
    """The numbers of a step that a kernel may read on its device; see `Kernel.step`."""

    lrs: Mapping[int, Tensor]
    grad_scale: Tensor | None
    found_inf: Tensor | None


class Kernel(Protocol):
    """Runs the steps of one plan on its device; takes addresses and numbers. What it carries is in `CarriedState`.

    A norm that tracks the weights and is not finite must not spoil weights that others have put right since. A kernel
    on the host takes it anew before the step; another one leaves the layer as it is for one step, in which it takes the
    sums, and goes on with the next.

    Attributes:
        is_on_host: whether a call returns when all is done. Else it is put on the device's current stream.
    """

    is_on_host: bool

    @property
    def steps(self) -> int:
        """How many steps were launched. An interrupt may keep Python from seeing that a step returned."""

    def place(self, weights: array[int], momentum_buffers: array[int], params: array[int]) -> None:
        """Takes the addresses of weights, momentum buffers and parameters of masters (0: none), for all later calls."""

    def measure(self, chosen: bytearray) -> None:
        """Takes the norms of the layers whose byte is 1 from their weights, except of those whose norm is kept."""

    def step(
        self,
        grads: array[int],
        grad_dtypes: array[int],
        values: array[float],
        lrs: Mapping[int, Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        measures_gradients: bool,
    ) -> int | None:
        """Takes a step.

        Args:
            grads: the address of each gradient; 0 leaves the tensor as it is.
            grad_dtypes: the dtype code of each: the parameter's or float32's.
            values: the fields of `GroupValues` of each group, in their order, one after the other.
            lrs: group index → a float32 on the device that is its learning rate in the place of that in the values.
            grad_scale: float32 on the device: what the gradients were multiplied by; None for 1.
            found_inf: float32 on the device: if it is not 0, the step leaves everything as it is; None for 0.
                A kernel on the host gets no `lrs` and no `found_inf`: what these say was read before.
            measures_gradients: first takes the squared norms of the gradients that no step has left (the relative
                scale). A kernel on the host does so where it must, whatever this says.

        Returns:
            How many layers had a stale norm, if that is known by now.
        """

    def memory(self) -> Sequence[Tensor]:
        """Returns the device memory that it uses besides what it is given."""

    def stream(self) -> object | None:
        """Returns the current stream, in a form that can be compared; None on the host, or if a graph records it."""


MakeKernel = Callable[[StepPlan, CarriedState], Kernel]


def kernel_plan(plan: StepPlan) -> dict[str, Any]:
    """Returns what kernels are made from; see csrc/plan.h."""
    return {
        "tensors": [
            (param.numel(), group, DTYPE_CODES[torch.float32 if precision.has_master else param.dtype])
            for param, group, precision in zip(plan.params, plan.group_of, plan.precisions, strict=True)
        ],
        "layers": [
            (
                planned.param,
                planned.scaled,
                *map(float, (planned.layer.rows, planned.layer.columns)),
                planned.backward_factor,
                planned.is_vector,
            )
            for planned in plan.layers
        ],
        "eps": plan.options.eps,
        "shape_decay": plan.options.decay == "shape",
        "track_norms": not plan.options.freezes_norms,
        "relative": plan.options.is_relative,
        "precision": [] if plan.is_plain else list(map(_precision_of, plan.params, plan.precisions)),
    }


def why_not_dtypes(dtypes: Collection[torch.dtype]) -> str | None:
    """Returns why no kernel can take parameters of these dtypes, or None if all can."""
    for dtype in dtypes:
        if dtype not in DTYPE_CODES:
            return f"it takes float32, bfloat16 and float16, not {dtype}"
    return None


def cpu_kernel(plan: StepPlan, carried: CarriedState) -> Kernel:
    """Makes the extension's kernel for the CPU, which is a `Kernel` as it is."""
    kernel = extension.core.CpuPlan(**kernel_plan(plan), threads=torch.get_num_threads)
    kernel.attach(*map(Tensor.data_ptr, carried))
    return kernel


class CudaKernel:
    """Launches the extension's kernel on an NVIDIA GPU; see csrc/cuda/step.h.

    Args:
        plan: what it steps.
        carried: what it carries.
    """

    is_on_host = False
    core: ModuleType = extension.core  # the tests have an emulation

    def __init__(self, plan: StepPlan, carried: CarriedState) -> None:
        self._torch_device = plan.device
        with self.on_device():
            self._plan = self.core.CudaPlan(device=self.index, **kernel_plan(plan))
            self._tables = torch.zeros(self._plan.table_bytes, dtype=torch.uint8, device=plan.device)
            self._plan.attach(*map(Tensor.data_ptr, (self._tables, *carried)), self.raw_stream())

    @property
    def index(self) -> int:
        """The device's."""
        return self._torch_device.index or 0

    @property
    def steps(self) -> int:
        """How many steps were launched."""
        return int(self._plan.steps)

    def place(self, weights: array[int], momentum_buffers: array[int], params: array[int]) -> None:
        """Sends the addresses to the device; not in a capture."""
        with self.on_device():
            self._plan.place(weights, momentum_buffers, params, self.raw_stream())

    def measure(self, chosen: bytearray) -> None:
        """Launches a norm pass."""
        with self.on_device():
            self._plan.measure(chosen, self.raw_stream())

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
        """Launches a step, whose arguments hold what changes from step to step."""
        lr_addresses = array("Q", bytes(8 * (len(values) // len(GroupValues._fields))))
        for group, lr in lrs.items():
            lr_addresses[group] = lr.data_ptr()
        numbers = (0 if number is None else number.data_ptr() for number in (grad_scale, found_inf))
        with self.on_device():
            self._plan.step(grads, grad_dtypes, values, lr_addresses, *numbers, measures_gradients, self.raw_stream())

    def memory(self) -> Sequence[Tensor]:
        """Returns the tables."""
        return [self._tables]

    def stream(self) -> int | None:
        """Returns the current stream as an integer, or None if a graph records it."""
        stream = self.raw_stream()
        with self.on_device():
            return None if self._plan.is_capturing(stream) else stream

    def raw_stream(self) -> int:
        """Returns the current stream as an integer."""
        # What current_stream() makes a Stream of, which takes microseconds.
        return torch._C._cuda_getCurrentRawStream(self.index)

    def on_device(self) -> AbstractContextManager[Any]:
        """Makes the plan's device the current one, since the extension does not put back the one before."""
        return _on_device(self.index)


def why_not_native(device: torch.device, dtypes: Collection[torch.dtype]) -> str | None:
    """Returns why the extension cannot run parameters of these dtypes on a device, or None if it can."""
    if device.type not in ("cpu", "cuda"):
        return f"it has no kernel for {device.type}, only for cpu and cuda"
    missing = why_not_dtypes(dtypes) or extension.why_not_installed()
    if missing or device.type == "cpu":
        return missing
    if torch.version.hip:
        return "it has a kernel for CUDA, not for ROCm"
    return extension.why_not_cuda() or _why_not_device(device.index or 0)


def _precision_of(param: Tensor, precision: Precision) -> tuple[int, bool, bool, int]:
    """Returns what kernels are told of a tensor; float32 in the place of a parameter's dtype is for no master."""
    param_dtype = param.dtype if precision.has_master else torch.float32
    return DTYPE_CODES[param_dtype], precision.has_small_momentum, precision.is_stochastic, precision.stream


def _on_device(index: int) -> AbstractContextManager[Any]:
    return nullcontext() if torch.cuda.current_device() == index else torch.cuda.device(index)


def _why_not_device(index: int) -> str | None:
    """Returns why the kernels cannot run on a device that the driver knows, or None if they can."""
    if index not in _usable_devices:
        try:
            with _on_device(index):
                extension.core.check_cuda_device(index)
        except RuntimeError as error:
            return str(error)
        _usable_devices.add(index)
    return None
