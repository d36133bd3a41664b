"""The CUDA backend with its kernels on the CPU: the same Python, the same C++, the same kernel source.

Importing this module enters it among the backends, so that the tests that run on all of them run on it too.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch

from sasgd_fused.backends import BACKENDS, Entry
from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.device_state import CarriedState
from sasgd_fused.backends.fused import FusedBackend
from sasgd_fused.backends.kernel import CudaKernel, why_not_dtypes
from sasgd_fused.plan import State, StepPlan
from tests.kernels.emulated_objects import emulated_command, emulated_kernels, emulation, why_not_emulated
from tests.kernels.native_programs import BUILD_DIR, SOURCES, compiler_for
from tools.native_core import CSRC
from tools.ninja_build import Object, build

EMULATED_CUDA = "emulated cuda"


@cache
def emulated_module() -> ModuleType:
    """Builds and imports the module."""
    import pybind11  # here, because nothing else in the tests needs it

    command = [*emulated_command(), "-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()]
    library = build(
        [
            emulated_kernels(),
            *emulation(),
            Object(SOURCES / "emulation/module.cpp", "module.o", command),
            Object(CSRC / "cuda/bindings.cpp", "bindings.o", command),
        ],
        output=f"emulated_cuda{sysconfig.get_config_var('EXT_SUFFIX')}",
        linker=compiler_for("cuda"),
        link_flags=["-shared"],
        build_dir=BUILD_DIR / "plain",  # with the program that tests the kernels, which has the same objects
    )
    spec = importlib.util.spec_from_file_location("emulated_cuda", library)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["emulated_cuda"] = module
    spec.loader.exec_module(module)
    return module


class EmulatedCudaKernel(CudaKernel):
    """Takes parameters on the CPU as if they were on the device."""

    # What tests set in the place of torch.cuda's current stream and device.
    current_stream = 0
    current_index = 0

    def __init__(self, plan: StepPlan, carried: CarriedState) -> None:
        type(self).core = emulated_module()
        super().__init__(plan, carried)

    @property
    def index(self) -> int:
        return self.current_index

    def raw_stream(self) -> int:
        return self.current_stream

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """As torch.cuda.device: the device before is set again if it has a context."""
        before = self.core.current_device()
        if before != self.index:
            self.core.set_device(self.index)
        try:
            yield
        finally:
            if before != self.index and self.core.has_context(before):
                self.core.set_device(before)


def why_not(device: torch.device, dtypes: Collection[torch.dtype]) -> str | None:
    """Returns that there is no compiler or headers, or that devices or dtypes are others."""
    if device.type != "cpu":
        return f"it emulates a device on the CPU, not on {device.type}"
    return why_not_emulated() or why_not_dtypes(dtypes)


def make(plan: StepPlan, state: State) -> Backend:
    return FusedBackend(plan, state, EMULATED_CUDA, EmulatedCudaKernel)


BACKENDS[EMULATED_CUDA] = Entry(why_not, make)
