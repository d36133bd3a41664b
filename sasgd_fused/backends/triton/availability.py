"""Whether the Triton backend can run: on GPUs for which no extension was compiled, NVIDIA's, AMD's and Intel's.

With ``TRITON_INTERPRET=1`` in the environment it runs on the CPU, for tests and for debugging.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection

import torch

from sasgd_fused.backends.kernel import why_not_dtypes

_OLDEST = (3, 4)
_DEVICE_OF_TARGET = {"cuda": "cuda", "hip": "cuda", "xpu": "xpu"}  # Triton's name → torch's
_reasons: dict[torch.device, str | None] = {}  # of devices that were looked at


def why_not(device: torch.device, dtypes: Collection[torch.dtype]) -> str | None:
    """Returns why Triton cannot run parameters of these dtypes on a device, or None if it can."""
    if missing := why_not_dtypes(dtypes):
        return missing
    if device.type == "cpu":
        return _why_not_interpreter()
    if device not in _reasons:
        _reasons[device] = _why_not_device(device)
    return _reasons[device]


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
    from sasgd_fused.backends.triton.kernel import on_device

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
