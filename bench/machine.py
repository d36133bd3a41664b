"""Says where and from what sources something was measured."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("bench", "csrc", "sasgd_fused", "tools")
SUFFIXES = (".py", ".h", ".cpp", ".cu", ".cuh")
# Git refuses a checkout that belongs to another user, as it often does in a container.
GIT_DESCRIBE = ("git", "-c", f"safe.directory={ROOT}", "describe", "--always", "--dirty", "--exclude=*")
NVIDIA_SMI = {
    "driver_version": "driver",
    "clocks.max.sm": "highest clock",
    "clocks.max.mem": "highest memory clock",
    "power.limit": "power limit",
}
# What may differ between two measurements that belong together.
PASSING = ("date", "load average before", "commit")


def machine(device: str, commit: str | None = None) -> dict[str, object]:
    """Says where a measurement is made: device, processor, versions, sources.

    Args:
        device: `"cuda"` or `"cpu"`.
        commit: where the sources are no checkout.
    """
    try:
        compiler = importlib.import_module("sasgd_fused._C").compiler
    except ImportError:
        compiler = None
    return {
        **(_gpu() if device == "cuda" else {}),
        "cpu": _cpu_name(),
        "cores": all_cores(),
        "load average before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("triton", "setuptools") if find_spec(name)},
        "compiler of the extension": compiler,
        "commit": commit or _output(*GIT_DESCRIBE),
        "sources": digest(ROOT),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def belong_together(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Returns whether figures from the same sources on the same machine come from these two."""
    lasting, others = ({key: fact for key, fact in where.items() if key not in PASSING} for where in (one, other))
    return lasting == others and "sources" in lasting


def digest(root: Path) -> str:
    """Returns what identifies the sources, also where there is no commit."""
    files = [path for folder in SOURCES for path in (root / folder).rglob("*") if path.suffix in SUFFIXES]
    known = hashlib.sha256()
    for path in sorted([*files, root / "setup.py"]):
        known.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return known.hexdigest()[:12]


def all_cores() -> int:
    """Counts the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def file_name(device: str) -> str:
    """Turns a device's name into one for a file."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _version(package: str) -> str | None:
    """Returns a version, or None where the module comes with a package of another name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """Returns what the processor calls itself, and its family and model: a virtual one tells no more of its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name}, family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else name


def _gpu() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    query = f"--query-gpu={','.join(NVIDIA_SMI)}"
    answer = _output("nvidia-smi", f"--id=GPU-{properties.uuid}", query, "--format=csv,noheader")
    return {
        "device": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory GB": round(properties.total_memory / 1e9, 1),
        "L2 MB": round(properties.L2_cache_size / 1e6, 1),
        **(dict(zip(NVIDIA_SMI.values(), answer.split(", "), strict=True)) if answer else {}),
        "CUDA of torch": torch.version.cuda,
    }


def _output(*command: str) -> str | None:
    """Returns what a program printed, or None where it is missing or failed."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
