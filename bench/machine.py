"""Says where something was measured."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from pathlib import Path

import torch


def machine() -> dict[str, object]:
    """Say where a measurement was made: processor, versions, commit."""
    try:
        compiler = importlib.import_module("sasgd_fused._C").compiler
    except ImportError:
        compiler = None
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
    except OSError:
        commit = ""
    return {
        "cpu": _cpu_name(),
        "cores": all_cores(),
        "load average before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler of the extension": compiler,
        "commit": commit.strip() or None,
    }


def all_cores() -> int:
    """Count the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
