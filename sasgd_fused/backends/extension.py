"""The compiled extension, and why it or its CUDA part is absent."""

from __future__ import annotations

# After torch, so that torch's OpenMP runtime is the process's only one.
import torch  # noqa: F401

__all__ = ["core", "why_not_cuda", "why_not_installed"]

try:
    import sasgd_fused._C as core
except ImportError as error:
    core = None  # type: ignore[assignment]
    import_error = str(error)


def why_not_installed() -> str | None:
    """Why the extension is absent, or None if it is there."""
    return None if core else f"the compiled extension of sasgd_fused is not there ({import_error})"


def why_not_cuda() -> str | None:
    """Why the extension cannot use a CUDA device at all, or None if it can."""
    if missing := why_not_installed():
        return missing
    if not hasattr(core, "CudaPlan"):
        return "the compiled extension of sasgd_fused was built without CUDA (no nvcc was found then)"
    try:
        devices = core.cuda_devices()
    except RuntimeError as error:
        return str(error)
    return None if devices else "the CUDA driver sees no device"
