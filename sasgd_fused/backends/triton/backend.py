"""The Triton backend: the step on GPUs for which no extension was compiled, NVIDIA's, AMD's and Intel's."""

from __future__ import annotations

import importlib.util
import os
from array import array
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from sasgd_fused.backends.device import DeviceBackend
from sasgd_fused.hyperparameters import GroupValues
from sasgd_fused.plan import State, StepPlan

_OLDEST = (3, 4)
_DEVICE_OF_TARGET = {"cuda": "cuda", "hip": "cuda", "xpu": "xpu"}  # Triton's name → torch's
_reasons: dict[torch.device, str | None] = {}  # of devices that were looked at


class TritonBackend(DeviceBackend):
    """Tables of addresses and numbers are kept on the device; see `launch.TritonPlan`.

    With ``TRITON_INTERPRET=1`` in the environment it runs on the CPU, for tests and for debugging.
    """

    name = "triton"

    def __init__(self, plan: StepPlan, state: State) -> None:
        super().__init__(plan, state)
        from sasgd_fused.backends.triton.launch import TritonPlan  # here, because Triton may be absent

        carried = (self._norms, self._stale, self._flags.on_device, self._rounding.on_device)
        self._kernel = TritonPlan(plan.device, *carried, **self._kernel_plan())

    @classmethod
    def why_not(cls, device: torch.device, dtypes: Collection[torch.dtype]) -> str | None:
        """No Triton, or one that has nothing for this device."""
        if missing := cls.why_not_these(dtypes):
            return missing
        if device.type == "cpu":
            return _why_not_interpreter()
        if device not in _reasons:
            _reasons[device] = _why_not_device(device)
        return _reasons[device]

    def _send_addresses(self, weights: array[int], momentum_buffers: array[int], copies: array[int]) -> None:
        self._kernel.place(weights, momentum_buffers, copies)

    def _launch_norm_pass(self, chosen: bytearray) -> None:
        self._kernel.measure(chosen)

    def _launch_step(
        self,
        values: Sequence[GroupValues],
        lrs: Mapping[int, Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        self._kernel.step(self._gradients.table, self._gradients.codes, values, lrs, grad_scale, found_inf)

    def _sum_squares(self) -> Tensor:
        return self._kernel.sum_squares

    def _launched_steps(self) -> int:
        return self._kernel.steps

    def _is_capturing(self) -> bool:
        return self._kernel.is_capturing()

    def _current_stream(self) -> object:
        return None if self.plan.device.type == "cpu" else super()._current_stream()

    def _memory(self) -> list[Tensor]:
        return [*self._kernel.memory(), *super()._memory()]


def _why_not_interpreter() -> str | None:
    if "TRITON_INTERPRET" in os.environ:  # Triton itself has to say what it makes of it
        if missing := _why_not_installed():
            return missing
        if _is_interpreted():
            return None
    return "it runs on GPUs, and on the CPU only in Triton's interpreter (TRITON_INTERPRET=1 from the start)"


def _why_not_device(device: torch.device) -> str | None:
    """Why Triton cannot use a GPU, or None if it can."""
    if device.type not in _DEVICE_OF_TARGET.values():
        return f"it has no kernel for {device.type}"
    if missing := _why_not_installed():
        return missing
    if _is_interpreted():
        return "TRITON_INTERPRET is set, and the interpreter cannot read the memory of a GPU"
    import triton

    from sasgd_fused.backends.triton.compiled import compiled_kernels
    from sasgd_fused.backends.triton.launch import on_device

    try:
        with on_device(device):
            target = triton.runtime.driver.active.get_current_target()
            if _DEVICE_OF_TARGET.get(target.backend) != device.type:
                return f"Triton {triton.__version__} compiles for {target.backend}, not for {device.type}"
            if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
                return f"{device} has no float64, in which norms are kept"
            compiled_kernels(device)
    except Exception as error:  # whatever a driver or a compiler raises
        return f"Triton {triton.__version__} cannot use {device}: {error}"
    return None


def _why_not_installed() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    try:
        import triton

        version = tuple(map(int, triton.__version__.split(".")[:2]))
        if version < _OLDEST:
            return f"Triton {triton.__version__} is too old, {'.'.join(map(str, _OLDEST))} is wanted"
        _is_interpreted()  # imports the kernels
    except Exception as error:  # a library of the system that is missing, say
        return f"Triton cannot be imported: {error}"
    return None


def _is_interpreted() -> bool:
    from sasgd_fused.backends.triton.compiled import is_interpreted

    return is_interpreted()
