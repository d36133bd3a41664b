"""`python -m sasgd_fused.info`: what is built, what can run here, and why not."""

from __future__ import annotations

import platform

import torch

import sasgd_fused
from sasgd_fused.backends import BACKENDS
from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.native import NativeBackend
from sasgd_fused.plan import SUPPORTED_DTYPES

INSTALL_HINT = """\
    To build it, install a C++ compiler (Debian, Ubuntu: apt install g++ python3-dev; macOS: xcode-select --install),
    then install sasgd_fused again with pip install --force-reinstall --no-deps --no-cache-dir."""


def describe() -> str:
    """The state of this installation, as text."""
    lines = [
        f"sasgd_fused {sasgd_fused.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
    ]
    reason = NativeBackend.why_not_installed()
    if reason:
        lines += [f"extension: no. {reason}", INSTALL_HINT]
    else:
        from sasgd_fused import _C

        lines += [
            f"extension: yes, compiled by {_C.compiler}",
            f"instruction sets: {', '.join(_C.instruction_sets())} (the first is used)",
            f"threads: {torch.get_num_threads()}, torch's",
        ]
    lines.append("backends, the fastest first, and what they run:")
    for device in _devices():
        for name, backend in BACKENDS.items():
            lines.append(f"    {device}  {name:10}{_what_runs(backend, device)}")
    return "\n".join(lines)


def _devices() -> list[torch.device]:
    devices = [torch.device("cpu")]
    if torch.accelerator.is_available() and (accelerator := torch.accelerator.current_accelerator()):
        devices.append(accelerator)
    return devices


def _what_runs(backend: type[Backend], device: torch.device) -> str:
    reasons = {dtype: backend.why_not(device, [dtype]) for dtype in SUPPORTED_DTYPES}
    works = [str(dtype).removeprefix("torch.") for dtype, reason in reasons.items() if reason is None]
    why_not = dict.fromkeys(reason for reason in reasons.values() if reason)
    return "; ".join([", ".join(works) or "nothing", *why_not])


if __name__ == "__main__":
    print(describe())
