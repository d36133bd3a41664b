"""The native backend: the compiled extension, in C++ on the CPU and in CUDA C++ on NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Collection

import torch

from sasgd_fused.backends import extension
from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.cpu import CpuBackend
from sasgd_fused.backends.cuda import CudaBackend
from sasgd_fused.backends.kernel import KernelBackend
from sasgd_fused.plan import State, StepPlan

_OF_DEVICE: dict[str, type[KernelBackend]] = {"cpu": CpuBackend, "cuda": CudaBackend}


class NativeBackend(Backend):
    """The name under which the kernels for all devices are found; only those are instantiated."""

    name = "native"

    @classmethod
    def why_not(cls, device: torch.device, dtypes: Collection[torch.dtype]) -> str | None:
        """Another kind of device or dtype, no extension, or what the device's own backend says."""
        if device.type not in _OF_DEVICE:
            return f"it has no kernel for {device.type}, only for {' and '.join(_OF_DEVICE)}"
        missing = KernelBackend.why_not_these(dtypes) or extension.why_not_installed()
        return missing or _OF_DEVICE[device.type].why_not(device, dtypes)

    @classmethod
    def create(cls, plan: StepPlan, state: State) -> Backend:
        """Makes the backend of the plan's device."""
        return _OF_DEVICE[plan.device.type].create(plan, state)
