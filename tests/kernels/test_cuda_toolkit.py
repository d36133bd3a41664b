"""The CUDA compiler is found where it may be, and one that cannot be used is refused in words."""

from __future__ import annotations

import site
from pathlib import Path

import pytest

from tests.kernels.native_programs import compiler_for
from tests.kernels.toolchain import cuda_toolkit, write_script
from tools import cuda
from tools.cuda import (
    ARCHITECTURES,
    DEFAULT_ARCHITECTURES,
    UnusableToolkit,
    find_nvcc,
    find_toolkit,
    nvcc_command,
    wanted_architectures,
)
from tools.ninja_build import Object, build


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An nvcc in each of the places that are looked through, first things first."""
    places = [
        write_script(tmp_path / folder / "nvcc")
        for folder in ("home/bin", "path/bin", "on PATH", "packages/nvidia/cu13/bin", "usual/bin")
    ]
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PATH", str(tmp_path / "on PATH"))
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path / "packages")])
    monkeypatch.setattr(cuda, "USUAL_PLACE", places[-1])
    return places


def test_nvcc_is_looked_for_in_this_order(places: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [find_nvcc()]
    monkeypatch.setenv("CUDA_HOME", "")
    found.append(find_nvcc())
    monkeypatch.delenv("CUDA_PATH")
    for place in places[2:]:
        found.append(find_nvcc())
        place.unlink()
    assert found == places
    assert find_nvcc() is None
    assert find_toolkit(["g++"]) is None


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_named_toolkit_without_nvcc_is_refused(
    variable: str, places: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(UnusableToolkit, match=f"^{variable}={tmp_path} has no bin/nvcc that can be run$"):
        find_nvcc()


@pytest.mark.parametrize(
    ("version", "rest", "complaint"),
    [
        ("release 11.8, V11.8.89", "", "is of CUDA 11.8, want 12.1 or newer"),
        ("nothing to say", "", "--version names no release"),
        ("release 13.0", "echo '#$ TOP=/'; echo unsupported compiler >&2; exit 1", "failed:\nunsupported compiler$"),
        ("release 13.0", "echo '#$ LIBRARIES= \"-L/no/lib64\"'", r"comes without libcudart_static.a \(looked in /no/"),
    ],
)
def test_unusable_compiler_is_refused(
    version: str, rest: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_script(tmp_path / "bin/nvcc", f'if [ "$1" = --version ]; then echo "{version}"; exit; fi', rest)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(UnusableToolkit, match=f"^{tmp_path}/bin/nvcc.* {complaint}"):
        find_toolkit(compiler_for("cuda"))


def test_toolkit_is_found_behind_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit = cuda_toolkit()
    script = write_script(tmp_path / "bin" / "nvcc", f'exec "{toolkit.nvcc}" "$@"')
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = find_toolkit(compiler_for("cuda"))
    assert found is not None
    assert found.nvcc == script
    assert (found.version, found.includes, found.runtime) == (toolkit.version, toolkit.includes, toolkit.runtime)
    for header in ("cuda_runtime.h", "cuda_bf16.h", "cuda/atomic"):
        assert any((folder / header).is_file() for folder in found.includes), header


def test_cuda_is_compiled_again_after_an_edit_of_a_header(tmp_path: Path) -> None:
    toolkit, compiler = cuda_toolkit(), compiler_for("cuda")
    header, source, build_dir = (tmp_path / name for name in ("the value.cuh", "main.cu", "build"))
    header.write_text("__global__ void kernel() {}\n")
    source.write_text('#include "the value.cuh"\nint main() {}\n')

    def time_of_object() -> int:
        objects = [Object(source, "main.o", nvcc_command(toolkit, compiler, [80]))]
        build(objects, output="main", linker=compiler, link_flags=toolkit.link_flags, build_dir=build_dir)
        return (build_dir / "main.o").stat().st_mtime_ns

    first = time_of_object()
    assert time_of_object() == first
    header.write_text("__global__ void kernel(int) {}\n")
    assert time_of_object() > first


@pytest.mark.parametrize(
    ("named", "wanted"), [("90", (90,)), ("75 90", (75, 90)), ("all", ARCHITECTURES), ("", DEFAULT_ARCHITECTURES)]
)
def test_architectures_can_be_named(named: str, wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SASGD_CUDA_ARCHITECTURES", named)
    assert wanted_architectures() == wanted


def test_an_architecture_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SASGD_CUDA_ARCHITECTURES", "sm_90")
    with pytest.raises(UnusableToolkit, match=r"^SASGD_CUDA_ARCHITECTURES: got 'sm_90', want numbers, as in '80 90'"):
        wanted_architectures()


def test_an_architecture_that_cannot_be_compiled_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside one that can be: a release shall have all, or not be built."""
    cuda_toolkit()
    monkeypatch.setenv("SASGD_CUDA_ARCHITECTURES", "90 11")
    with pytest.raises(UnusableToolkit, match=r"compiles for .*sm_90.*, not for sm_11$"):
        find_toolkit(compiler_for("cuda"))
