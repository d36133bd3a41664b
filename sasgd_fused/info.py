"""`python -m sasgd_fused.info`: what is built, what can run here, and why not."""

from __future__ import annotations

import platform

import torch

import sasgd_fused
from sasgd_fused.backends import BACKENDS, Entry, extension
from sasgd_fused.parameters import SUPPORTED_DTYPES

INSTALL_HINT = """\
    To build it, install a C++ compiler (Debian, Ubuntu: apt install g++ python3-dev; macOS: xcode-select --install),
    then install sasgd_fused again with pip install --force-reinstall --no-deps --no-cache-dir."""

CUDA_HINT = """\
    To run on NVIDIA GPUs, install the CUDA toolkit (nvcc on PATH, or CUDA_HOME set), then install sasgd_fused again
    with SASGD_BUILD_CUDA=1 pip install --force-reinstall --no-deps --no-cache-dir."""


def describe() -> str:
    """Returns the state of this installation as text."""
    lines = [
        f"sasgd_fused {sasgd_fused.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
    ]
    reason = extension.why_not_installed()
    if reason:
        lines += [f"extension: no. {reason}", INSTALL_HINT]
    else:
        lines += [
            f"extension: yes, compiled by {extension.core.compiler}",
            f"instruction sets: {', '.join(extension.core.instruction_sets())} (the first is used)",
            f"prefetch: {extension.core.prefetch_distance()} elements ahead",
            f"threads: {torch.get_num_threads()}, torch's",
            *_describe_cuda(),
        ]
    lines.append("backends, the fastest first, and what they run:")
    for device in _devices():
        for name, entry in BACKENDS.items():
            lines.append(f"    {device}  {name:10}{_what_runs(entry, device)}")
    return "\n".join(lines)


def _describe_cuda() -> list[str]:
    core = extension.core
    if not hasattr(core, "CudaPlan"):
        return ["CUDA: no. The extension was built without it.", CUDA_HINT]
    version, minor = divmod(core.CUDA_VERSION, 1000)
    built_for = ", ".join(f"sm_{number // 10}" for number in core.CUDA_ARCHITECTURES)
    lines = [f"CUDA: yes, compiled by nvcc {version}.{minor // 10} for {built_for}, and later ones"]
    if reason := extension.why_not_cuda():
        lines.append(f"    It cannot run here: {reason}.")
    elif not torch.cuda.is_available():
        lines.append(f"    The driver sees a device, but torch {torch.__version__} was built without CUDA.")
    return lines


def _devices() -> list[torch.device]:
    devices = [torch.device("cpu")]
    if torch.accelerator.is_available() and (accelerator := torch.accelerator.current_accelerator()):
        devices.append(accelerator)
    return devices


def _what_runs(entry: Entry, device: torch.device) -> str:
    reasons = {dtype: entry.why_not(device, [dtype]) for dtype in SUPPORTED_DTYPES}
    works = [str(dtype).removeprefix("torch.") for dtype, reason in reasons.items() if reason is None]
    why_not = dict.fromkeys(reason for reason in reasons.values() if reason)
    return "; ".join([", ".join(works) or "nothing", *why_not])


if __name__ == "__main__":
    print(describe())
