"""What `make test` leaves out loses nothing: each test has a case in it, on every backend that the test names."""

from __future__ import annotations

import pytest

from tests.tiers import COLLECTED, LATER, by_function_and_backend, cover, values_of

# Tests that are wholly in a later tier, by the file or the test.
WHOLLY_LATER: dict[str, str] = {
    "tests/frameworks/": "needs what only make test-all installs",
    "tests/bench/test_gpu_check.py::test_tests_that_outlast_their_time": "waits for the end of that time",
    "tests/product/test_install.py::test_source_archive_builds_in_isolation": "compiles everything",
    "tests/product/test_mistakes.py": "runs tests for each mistake",
    "tests/experiments/study/test_study.py::test_a_study_that_is_ended_has_lost_nothing": "starts processes of its own",
    "tests/experiments/autoencoder/test_kfac.py::test_curvlinops": "needs what nothing installs",
    "tests/experiments/hessian/test_claims.py::test_training_brings_about": "trains",
    "tests/experiments/hessian/test_claims.py::test_what_is_left_says_little": "trains",
    "tests/experiments/hessian/test_hessian_report.py::test_the_slow_sections": "trains",
    "tests/test_site.py::test_the_site_is_made": "needs what only make docs installs",
    "tests/kernels/test_cuda_candidates.py": "compiles other kernels",
    "tests/kernels/test_mistakes.py": "compiles the kernels three times more",
    "tests/kernels/test_native_core.py::test_bugs_are_noticed_by_the_sanitizers": "compiles the core for them",
    "tests/kernels/test_cuda_code.py": "compiles for every architecture",
    "tests/kernels/test_triton_code.py": "compiles for several GPUs",
    "tests/kernels/test_triton_storage_code.py": "compiles for several GPUs",
}


def is_quick(case: pytest.Item) -> bool:
    return not any(case.get_closest_marker(tier) for tier in LATER)


def test_every_test_has_a_quick_case_on_every_backend(request: pytest.FixtureRequest) -> None:
    """Of those that were collected, so that it says most where all are."""
    missing = {
        (test, backend)
        for (test, backend), cases in by_function_and_backend(request.config.stash[COLLECTED]).items()
        if not any(map(is_quick, cases)) and not test.startswith(tuple(WHOLLY_LATER))
    }
    assert not missing, sorted(map(str, missing))


def test_a_test_that_is_wholly_later_is_listed_for_good_reason(request: pytest.FixtureRequest) -> None:
    """No entry is left of a test that is gone or quick."""
    collected = request.config.stash[COLLECTED]
    for place in WHOLLY_LATER:
        cases = [case for case in collected if case.nodeid.startswith(place)]
        files = {case.nodeid.partition("::")[0] for case in collected}
        if place.partition("::")[0] in files:
            assert cases, place
        assert not any(map(is_quick, cases)), place


@pytest.mark.parametrize(("strength", "size"), [(0, 1), (1, 4), (2, 12), (3, 24)])
def test_a_cover_is_small_and_lacks_nothing(strength: int, size: int) -> None:
    cases = [(("a", a), ("b", b), ("c", c)) for a in range(4) for b in range(3) for c in range(2)]
    chosen = [cases[place] for place in cover(cases, strength)]
    assert len(chosen) == size
    for case in cases:
        for first in case:
            for second in case:
                wanted = (first, second)[: min(strength, 2)]
                assert any(set(wanted) <= set(other) for other in chosen)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("number", [5, 6])
def test_the_values_of_a_case_are_its_parameters_without_the_backend(
    request: pytest.FixtureRequest, number: int, backend: str
) -> None:
    assert isinstance(request.node, pytest.Function)
    assert values_of(request.node) == (("number", id(number)),)
