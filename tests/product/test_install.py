"""The package installs with compilers and without them, and never needs torch for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.kernels.native_programs import give_up, run
from tests.kernels.toolchain import cuda_toolkit, write_script
from tools.native_core import find_compiler
from tools.ninja_build import Object, build

ROOT = Path(__file__).resolve().parents[2]
# What a release is made from; an environment or build folder in the tree stays out.
SOURCES = [
    *("bench", "csrc", "experiments", "sasgd_fused", "tests", "tools"),
    *("LICENSE", "MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml", "setup.py"),
]
EXTENSION = f"sasgd_fused/_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def copy_sources(folder: Path) -> Path:
    """A copy of the sources, in a folder whose name has a space in it."""
    tree = folder / "the sources"
    tree.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, tree / name, ignore=unwanted)
        else:
            shutil.copy2(ROOT / name, tree / name)
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_sources(tmp_path)


def run_python(*arguments: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with `env` over the environment, less what would choose the build."""
    choices = ("CXX", "SASGD_BUILD_CUDA", "SASGD_BUILD_NATIVE")
    inherited = {k: v for k, v in os.environ.items() if k not in choices}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**inherited, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,  # CUDA takes three minutes of one core
    )


def pip_wheel(source: Path, *options: str, **env: str) -> tuple[subprocess.CompletedProcess[str], Path | None]:
    """Run `pip wheel` on a tree or an archive; returns the run and the wheel, if one was made."""
    out = source.parent / "wheels"
    limits = ("--retries", "1", "--timeout", "20", "--disable-pip-version-check")
    command = ("-m", "pip", "wheel", "-v", "--no-deps", *limits, *options, "-w")
    done = run_python(*command, out, source, cwd=source.parent, **env)
    return done, next(out.glob("*.whl"), None)


def contents(wheel: Path) -> list[str]:
    """Names of the files in a wheel, less its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive."""
    tree = copy_sources(tmp_path_factory.mktemp("isolated"))
    build_sdist = "import setuptools.build_meta as backend; backend.build_sdist('dist')"
    done = run_python("-c", build_sdist, cwd=tree, SASGD_BUILD_NATIVE="0")
    assert done.returncode == 0, done.stdout
    (archive,) = (tree / "dist").iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(archive: Path) -> Path:
    """The wheel built in isolation from the source archive, with CUDA where there is a compiler for it."""
    done, wheel = pip_wheel(archive, SASGD_BUILD_NATIVE="1")
    assert wheel is not None, done.stdout
    return wheel


@pytest.fixture(params=["built in place", pytest.param("from the source archive", marks=pytest.mark.nightly)])
def extension(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "built in place":
        if find_spec("sasgd_fused._C") is None:
            give_up("the extension is not built", "native")
        return Path(import_module("sasgd_fused._C").__file__ or "")
    shutil.unpack_archive(request.getfixturevalue("wheel"), tmp_path, "zip")
    return tmp_path / EXTENSION


def run_with_extension(extension: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` with an extension as `module`, without any other package."""
    load = (
        "import sys; from importlib.machinery import ExtensionFileLoader as Loader;"
        "from importlib.util import module_from_spec, spec_from_loader;"
        "loader = Loader('sasgd_fused._C', sys.argv[1]);"
        "loader.exec_module(module := module_from_spec(spec_from_loader(loader.name, loader)));"
    )
    # -I -S: no site-packages, so an extension that wanted torch would not load.
    return run_python("-I", "-S", "-c", load + code, extension, cwd=extension.parent)


def test_extension_needs_neither_torch_nor_cuda(extension: Path) -> None:
    """Of CUDA neither driver nor runtime, also where it was built with it."""
    done = run_with_extension(extension, "print(module.CpuPlan)")
    assert done.returncode == 0, done.stdout

    dynamic = run(["readelf", "--dynamic", str(extension)]).stdout
    needed = [line for line in dynamic.splitlines() if "NEEDED" in line]
    assert any("libstdc++" in line for line in needed), dynamic
    assert not [line for line in needed if "cuda" in line], dynamic


def assert_whole(wheel: Path) -> None:
    names = contents(wheel)
    assert {EXTENSION, "sasgd_fused/py.typed", "sasgd_fused/__init__.py"} <= set(names)
    assert all(name.startswith("sasgd_fused/") for name in names), names


@pytest.mark.nightly
def test_source_archive_builds_in_isolation(wheel: Path, tmp_path: Path) -> None:
    assert_whole(wheel)
    cuda_toolkit()
    shutil.unpack_archive(wheel, tmp_path, "zip")
    done = run_with_extension(tmp_path / EXTENSION, "print(module.CudaPlan)")
    assert done.returncode == 0, done.stdout


def test_without_a_compiler_the_wheel_is_pure_and_says_so(tree: Path) -> None:
    done, wheel = pip_wheel(tree, "--no-build-isolation", PATH="")
    assert wheel is not None, done.stdout
    assert "no C++ compiler was found" in done.stdout
    assert wheel.name.endswith("-py3-none-any.whl")
    assert EXTENSION not in contents(wheel)


def test_build_native_0_leaves_the_extension_out_in_silence(tree: Path) -> None:
    done, wheel = pip_wheel(tree, "--no-build-isolation", SASGD_BUILD_NATIVE="0")
    assert wheel is not None, done.stdout
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "native extension" not in done.stdout


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({"CXX": "no-such-compiler"}, "CXX=no-such-compiler names no program"),
        (
            {"CXX": "no-such-compiler", "SASGD_BUILD_NATIVE": "1"},
            "CXX=no-such-compiler names no program",
        ),
        ({"PATH": "", "SASGD_BUILD_NATIVE": "1"}, "SASGD_BUILD_NATIVE=1, but no C++ compiler"),
        ({"SASGD_BUILD_NATIVE": "yes"}, "SASGD_BUILD_NATIVE must be auto, 0 or 1, got 'yes'"),
        ({"CXX": "false"}, "the native extension could not be built with false, see above"),
        ({"SASGD_BUILD_CUDA": "yes"}, "SASGD_BUILD_CUDA must be auto, 0 or 1, got 'yes'"),
        ({"PATH": "", "SASGD_BUILD_CUDA": "1"}, "SASGD_BUILD_CUDA=1, but no C++ compiler"),
    ],
)
def test_what_cannot_be_done_fails(tree: Path, env: dict[str, str], complaint: str) -> None:
    done, wheel = pip_wheel(tree, "--no-build-isolation", **env)
    assert done.returncode != 0
    assert wheel is None
    assert complaint in done.stdout


@pytest.fixture
def quick_compiler(tmp_path: Path) -> str:
    """What to set CXX to where it does not matter what is compiled: all that it makes is empty."""
    make_next = 'case $1 in -o|-MF) : > "$2";; esac'
    return f"'{write_script(tmp_path / 'quick compiler', f'while [ $# -gt 0 ]; do {make_next}; shift; done')}'"


def test_cuda_compiler_that_does_not_work_is_left_out_with_a_message(tree: Path, quick_compiler: str) -> None:
    answer = 'if [ "$1" = --version ]; then echo release 13.0; else echo an unsupported compiler; exit 1; fi'
    nvcc = write_script(tree / "cuda/bin/nvcc", answer)
    env = {"CXX": quick_compiler, "CUDA_HOME": str(nvcc.parents[1])}
    done, wheel = pip_wheel(tree, "--no-build-isolation", **env)
    assert wheel is not None, done.stdout
    assert EXTENSION in contents(wheel)
    assert f"sasgd_fused: '{nvcc}' --verbose" in done.stdout
    assert "an unsupported compiler" in done.stdout
    assert "The native extension is built without CUDA" in done.stdout

    wheel.unlink()
    done, wheel = pip_wheel(tree, "--no-build-isolation", SASGD_BUILD_CUDA="1", **env)
    assert done.returncode != 0
    assert wheel is None
    assert f"sasgd_fused: SASGD_BUILD_CUDA=1, but '{nvcc}' --verbose" in done.stdout


def test_build_cuda_0_does_not_even_look_for_the_compiler(archive: Path, quick_compiler: str, tmp_path: Path) -> None:
    """The source archive has all that is compiled."""
    env = {"CXX": quick_compiler, "CUDA_HOME": "/no such folder"}
    copy = Path(shutil.copy(archive, tmp_path))
    done, wheel = pip_wheel(copy, "--no-build-isolation", SASGD_BUILD_CUDA="0", **env)
    assert wheel is not None, done.stdout
    assert_whole(wheel)
    assert "CUDA" not in done.stdout


def test_ninja_rebuilds_only_what_an_edit_reaches(tmp_path: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    header, main, other = (tmp_path / name for name in ("value.h", "main.cpp", "an other.cpp"))
    header.write_text("inline int value() { return 1; }\n")
    main.write_text('#include "value.h"\nint other();\nint main() { return value() + other(); }\n')
    other.write_text("int other() { return 2; }\n")
    build_dir = tmp_path / "build $dir"

    def program(flags: list[str]) -> tuple[int, dict[str, int]]:
        objects = [Object(main, "main.o", compiler), Object(other, "other.o", [*compiler, *flags])]
        path = build(objects, output="program", linker=compiler, link_flags=[], build_dir=build_dir)
        code = subprocess.run([path]).returncode
        return code, {name: (build_dir / name).stat().st_mtime_ns for name in ("main.o", "other.o")}

    code, first = program([])
    assert code == 3
    assert program([]) == (3, first)

    header.write_text("inline int value() { return 5; }\n")
    code, second = program([])
    assert code == 7
    assert second["main.o"] != first["main.o"]
    assert second["other.o"] == first["other.o"]

    code, third = program(["-O1"])
    assert code == 7
    assert third["main.o"] == second["main.o"]
    assert third["other.o"] != second["other.o"]
