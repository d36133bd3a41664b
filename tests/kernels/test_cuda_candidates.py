"""The candidates of csrc/cuda/candidates.h, at once and alone: they have the bits of the kernels, on every schedule."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

from tests.kernels.cuda_code import take_apart
from tests.kernels.cuda_mistakes import CANDIDATE_MISTAKES
from tests.kernels.emulated_objects import emulated_kernels, emulated_tests, emulation, why_not_emulated
from tests.kernels.mistakes import assert_noticed, assert_right_otherwise, with_mistakes
from tests.kernels.native_programs import build_program, compiler_for, give_up, run
from tests.kernels.test_cuda_kernels import program as kernels_program
from tests.kernels.toolchain import cuda_toolkit
from tools.cuda import nvcc_command
from tools.cuda_candidates import CANDIDATES, PLAIN, build_candidates
from tools.native_core import CSRC

pytestmark = [pytest.mark.kernels, pytest.mark.xdist_group("cuda candidates")]

RIGHT = "kPrefetch+kTensorTrees+kEvictGradients+kEvictMomentum"
ALONE = "kShortArguments"  # how many tensors fit a launch; the program has the kernels for as many as now


@cache
def program(variant: str, candidates: str = RIGHT, *, is_mistaken: bool = False) -> list[str]:
    """Builds the program that tests the kernels, with candidates; returns the command that runs it."""
    if reason := why_not_emulated():
        give_up(reason, "cuda")
    kernels = [emulated_kernels(variant, candidates)]
    if is_mistaken:
        kernels = with_mistakes(kernels, "candidate_mistakes", CANDIDATE_MISTAKES)
    name = "mistaken_candidates" if is_mistaken else f"cuda_{candidates.replace('+', '_')}"
    return build_program(name, [*kernels, *emulated_tests(variant), *emulation(variant)], variant, "cuda")


def test_every_candidate_is_tested() -> None:
    named = {
        bit for candidate in CANDIDATES.values() if candidate.takes_right_steps for bit in candidate.bits.split("+")
    }
    assert named - set(PLAIN.split("+")) == {*RIGHT.split("+"), ALONE}


@pytest.mark.parametrize("test", ["steps", "carried", "relative", "precision"])
def test_candidates_take_right_steps(test: str) -> None:
    done = run([*program("plain"), test])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("candidates", ["kPrefetch", "kTensorTrees"])
def test_a_candidate_alone_takes_right_steps(candidates: str) -> None:
    done = run([*program("plain", candidates), "carried"])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("candidates", [RIGHT, "kPrefetch", "kTensorTrees"])
def test_candidates_have_the_bits_of_the_kernels(candidates: str) -> None:
    ours, theirs = (run([*made, "bits"]) for made in (kernels_program("plain"), program("plain", candidates)))
    assert theirs.returncode == 0 and "digest " in ours.stdout
    assert theirs.stdout == ours.stdout


def test_candidates_keep_to_their_memory() -> None:
    done = run([*program("address"), "carried"])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", CANDIDATE_MISTAKES)
def test_mistakes_in_candidates_are_noticed(name: str) -> None:
    assert_noticed(program(CANDIDATE_MISTAKES[name].variant, is_mistaken=True), name, CANDIDATE_MISTAKES)


@pytest.mark.parametrize("variant", ["plain", "thread"])
def test_candidates_are_right_otherwise(variant: str) -> None:
    noticed = [mistake for mistake in CANDIDATE_MISTAKES.values() if mistake.variant == variant]
    assert_right_otherwise(program(variant, is_mistaken=True), noticed)


def test_candidates_cost_no_thread_block(tmp_path: Path) -> None:
    """All at once they have what each has; tests/kernels/test_cuda_code.py says what is counted."""
    output = tmp_path / "candidates.o"
    define = f"-DSASGD_CANDIDATES={RIGHT}+{PLAIN}"
    command = nvcc_command(cuda_toolkit(), compiler_for("cuda"), [90])
    strict = ["-Xptxas", "-warn-spills,-warn-lmem-usage", "-Werror", "all-warnings"]
    done = run([*command, define, *strict, "-c", str(CSRC / "cuda/step.cu"), "-o", str(output)])
    assert done.returncode == 0, done.stdout
    steps = [kernel for kernel in take_apart(output) if "ELb0ELb0E" in kernel.name]
    assert len(steps) == 2
    for kernel in steps:
        assert kernel.resident_blocks(256) >= 4 and not kernel.complaints()
        assert kernel.dependent_loads() <= 3
        assert kernel.count("LDG.E.EF.128") > 0 and kernel.count("STG.E.EF.128") > 0
        assert kernel.count("CCTL.E.PF2") > 0, "prefetch"


def test_candidates_are_modules_that_one_process_loads() -> None:
    cuda_toolkit()
    modules = build_candidates(["prefetch", "without look-up"], [90])
    assert all(isinstance(module, Path) for module in modules.values()), modules
    code = (
        "import sys; from pathlib import Path; from sasgd_fused.backends import BACKENDS; "
        "from tools.cuda_candidates import enter; "
        "cores = []\n"
        "for name, module in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    enter(name, Path(module))\n"
        "    cores.append(BACKENDS[name].make.__closure__[0].cell_contents.core)\n"
        "first, second = (core.CudaPlan for core in cores)\n"
        "print(first is not second, [core.CUDA_ARCHITECTURES for core in cores])"
    )
    words = [str(word) for pair in modules.items() for word in pair]
    done = run([sys.executable, "-c", code, *words])
    assert done.returncode == 0 and "True [[900], [900]]" in done.stdout, done.stdout


def test_the_extension_is_built_without_candidates() -> None:
    text = (CSRC / "cuda/candidates.h").read_text(encoding="utf-8")
    assert "#define SASGD_CANDIDATES 0" in text
    sources = (CSRC.parent / "setup.py", *(CSRC.parent / "tools").glob("*.py"))
    users = [path.name for path in sources if "SASGD_CANDIDATES" in path.read_text(encoding="utf-8")]
    assert users == ["cuda_candidates.py"]
