"""A thread's floating-point mode: torch.set_flush_denormal sets it for the caller alone, not for the thread pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import Case, backends, cpu_only

pytestmark = [cpu_only("threads and their modes"), pytest.mark.parametrize("backend", backends(["native"]))]

SHAPES = [(300, 401), (257, 130), (5, 7)]


@pytest.fixture(autouse=True)
def mode() -> Iterator[None]:
    """The thread pool is there before the caller's mode is set, which is put back afterwards."""
    torch.randn(2000, 500).add_(1.0)
    yield
    torch.set_flush_denormal(False)


def with_small_weights(backend: str, lr: float) -> tuple[Case, list[torch.nn.Parameter], ScaleAmendedSGD]:
    """Weights whose squares are not normal numbers in float32."""
    case = Case(SHAPES, options={"lr": lr, "output_width": 7})
    params = case.params()
    with torch.no_grad():
        for param in params:
            param.mul_(1e-20)
    return case, params, case.optimizer(params, backend)


def stepped(backend: str, changes_at: int, lr: float = 0.0) -> tuple[list[torch.nn.Parameter], ScaleAmendedSGD]:
    """A run in which the caller flushes from one step on."""
    case, params, optimizer = with_small_weights(backend, lr)
    case.set_grads(params, 0)
    for step in range(20):
        torch.set_flush_denormal(step >= changes_at)
        optimizer.step()
    torch.set_flush_denormal(False)
    return params, optimizer


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("changes_at", [0, 3])
def test_nobody_is_said_to_have_written(
    backend: str, set_num_threads: Callable[[int], None], changes_at: int, threads: int
) -> None:
    set_num_threads(threads)
    _, optimizer = stepped(backend, changes_at)
    assert not any(row.stale_steps for row in optimizer.layer_report())


def test_results_do_not_depend_on_the_number_of_threads(backend: str, set_num_threads: Callable[[int], None]) -> None:
    """And the pool keeps its own mode: what is too small to be normal is there for it again."""
    runs = []
    for threads in (1, 2):
        set_num_threads(threads)
        params, optimizer = stepped(backend, 0, lr=1e-22)
        runs.append([*params, torch.tensor([row.row_norm_sq for row in optimizer.layer_report()])])
    assert all(map(torch.equal, *runs))
    assert bool((torch.full((200_000,), 1e-40) * 0.5).ne(0).all())
