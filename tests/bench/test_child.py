"""A broken kernel brings down a child process, and the rest goes on in a fresh one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.child import CallFailed, Child, ProcessLost
from tests.bench.calls import dies, hangs, process, raises
from tests.processes import has_ended


@pytest.fixture
def child() -> Iterator[Child]:
    with Child() as made:
        yield made


def test_calls_share_a_process_until_one_fails(child: Child) -> None:
    first = child.call(60, process)
    assert child.call(60, process) == first
    with pytest.raises(CallFailed, match=r"^ValueError: not built$"):
        child.call(60, raises, "not built")
    assert has_ended(first)
    assert child.call(60, process) != first


def test_a_process_that_dies_is_told_by_its_status(child: Child) -> None:
    first = child.call(60, process)
    with pytest.raises(ProcessLost, match=r"^the process ended with status 7$"):
        child.call(60, dies)
    assert child.call(60, process) != first


def test_a_call_that_hangs_is_ended(child: Child) -> None:
    first = child.call(60, process)
    with pytest.raises(ProcessLost, match=r"^stopped after 0\.1 s$"):
        child.call(0.1, hangs)
    assert has_ended(first)


def test_the_end_of_the_child_is_that_of_its_process() -> None:
    with Child() as child:
        first = child.call(60, process)
    assert has_ended(first)
