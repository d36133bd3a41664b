"""A measurement says where it was made, and figures of other sources or another machine are not mixed with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.machine import belong_together, digest, file_name, machine
from tests.kernels.toolchain import write_script


def test_figures_belong_together_by_their_sources_and_not_by_a_commit() -> None:
    where = machine("cpu", commit="abc")
    assert where["commit"] == "abc" and where["torch"] and where["sources"]
    assert belong_together(where, {**where, "date": "later", "commit": None, "load average before": 9})
    assert not belong_together(where, {**where, "sources": "others"})
    assert not belong_together(where, {**where, "torch": "1.0"})
    assert not belong_together({"torch": "1.0"}, {"torch": "1.0"}), "of unknown sources"


def test_sources_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    for name in ("setup.py", "csrc/a.h"):
        (tmp_path / name).write_text("one")
    first = digest(tmp_path)
    (tmp_path / "csrc/results.json").write_text("figures")
    assert digest(tmp_path) == first
    (tmp_path / "csrc/a.h").write_text("two")
    assert digest(tmp_path) != first
    (tmp_path / "csrc/a.h").rename(tmp_path / "csrc/b.h")
    (tmp_path / "csrc/b.h").write_text("one")
    assert digest(tmp_path) != first


def test_a_gpu_is_described_by_torch_and_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, multi_processor_count = "NVIDIA H200", 9, 0, 132
        total_memory, L2_cache_size, uuid = 150_000_000_000, 60_000_000, "1-2"

    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: Properties)
    write_script(tmp_path / "nvidia-smi", 'test "$1" = --id=GPU-1-2 && echo "580.1, 1980 MHz, 3201 MHz, 700.00 W"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    facts = machine("cuda")
    assert facts["device"] == "NVIDIA H200" and file_name(str(facts["device"])) == "nvidia-h200"
    assert (facts["compute capability"], facts["L2 MB"], facts["memory GB"]) == ("9.0", 60.0, 150.0)
    assert (facts["driver"], facts["highest memory clock"]) == ("580.1", "3201 MHz")
