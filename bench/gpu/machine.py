"""Says on what machine and from what sources something was measured."""

from __future__ import annotations

import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

import torch

from bench.gpu.command import ROOT
from bench.machine import machine
from tools.cuda import UnusableToolkit, find_nvcc

DRY_RUN = "dry run on the CPU"  # in the place of a device's name
# Git refuses a checkout that belongs to another user, as it often does in a container.
GIT = ("git", "-c", f"safe.directory={ROOT}")
NVIDIA_SMI = {
    "driver_version": "driver",
    "clocks.max.sm": "highest clock",
    "clocks.max.mem": "highest memory clock",
    "power.limit": "power limit",
}


def describe(device: str, commit: str | None = None) -> dict[str, object]:
    """The device, versions of what takes part, commit and date.

    Args:
        device: `"cuda"` or `"cpu"`.
        commit: where the sources are no checkout; `-dirty` at its end means that they were changed.
    """
    if commit is None:
        commit = _output(*GIT, "rev-parse", "--short", "HEAD")
        # What a run wrote there does not change what is measured.
        if commit and _output(*GIT, "status", "--porcelain", "--", ".", ":(exclude)bench/results"):
            commit += "-dirty"
    host = {key: fact for key, fact in machine().items() if key not in ("commit", "load average before")}
    return {
        "device": DRY_RUN,
        **(_gpu() if device == "cuda" else {}),
        **host,
        "CUDA of torch": torch.version.cuda,
        "triton": _version_of("triton"),
        "nvcc": _nvcc_version(),
        "commit": commit and commit.removesuffix("-dirty"),
        "dirty": commit.endswith("-dirty") if commit else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _gpu() -> dict[str, object]:
    index = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(index)
    facts: dict[str, object] = {
        "device": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory GB": round(properties.total_memory / 1e9, 1),
        "L2 MB": round(properties.L2_cache_size / 1e6, 1),
    }
    answer = _output(
        "nvidia-smi", f"--id=GPU-{properties.uuid}", f"--query-gpu={','.join(NVIDIA_SMI)}", "--format=csv,noheader"
    )
    if answer:
        facts |= dict(zip(NVIDIA_SMI.values(), answer.split(", "), strict=True))
    return facts


def _nvcc_version() -> str | None:
    try:
        nvcc = find_nvcc()
    except UnusableToolkit:
        return None
    found = re.search(r"\bV(\d+\.\d+\.\d+)", (nvcc and _output(str(nvcc), "--version")) or "")
    return found and found[1]


def file_name(device: str) -> str:
    """Turn a device's name into one for a file."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """What a program printed, or None where it is missing or failed."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
