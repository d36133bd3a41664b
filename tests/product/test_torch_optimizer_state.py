"""What torch's own tests (TestOptimRenewed) ask of every optimizer's state, checkpoints and hooks."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, assert_close, backends
from tests.product.torch_problem import INFO, Problem, assert_equal, begun, configurations
from tests.tiers import thin

pytestmark = [pytest.mark.usefixtures("default_device"), thin(strength=1, slow=0)]
with_and_without_names = pytest.mark.parametrize("named", list(itertools.product([False, True], repeat=2)), ids=str)


@pytest.fixture(params=backends())
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def without_names(state_dict: dict[str, Any]) -> dict[str, Any]:
    groups = [{name: group[name] for name in group if name != "param_names"} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


@with_and_without_names
def test_state_dict_deterministic(named: tuple[bool, bool], backend: str) -> None:
    for options in configurations(backend):
        problem, optimizer = begun(backend, 3, named[0], **options)
        twin, resumed = begun(backend, 0, named[1], **options)
        twin.copy(problem)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        problem.run(optimizer, 3)
        twin.run(resumed, 3)
        assert_equal(twin.params, problem.params)
        assert_equal(*(without_names(each.state_dict()) for each in (resumed, optimizer)))
        resumed.param_groups.extend(resumed.param_groups)
        assert_equal(*(without_names(each.state_dict())["param_groups"][-1] for each in (resumed, optimizer)))


def test_can_load_older_state_dict(backend: str) -> None:
    for options in configurations(backend):
        problem, optimizer = begun(backend, 2, **options)
        old = copy.deepcopy(optimizer.state_dict())
        for flag in INFO.not_og_supported_flags:
            old["param_groups"][0].pop(flag, None)
        optimizer.load_state_dict(old)
        assert optimizer.param_groups[0]["maximize"] is False
        before = problem.loss()
        problem.run(optimizer, 1)
        assert problem.loss() != before


@with_and_without_names
def test_can_load_from_to_named_state_dict(named: tuple[bool, bool], backend: str) -> None:
    for options in configurations(backend):
        _, optimizer = begun(backend, 1, named[0], **options)
        problem, resumed = begun(backend, 0, named[1], **options)
        resumed.load_state_dict(optimizer.state_dict())
        problem.run(resumed, 1)
        names = resumed.state_dict()["param_groups"][0].get("param_names")
        assert names == (["weight", "bias"] if any(named) else None)


@pytest.mark.parametrize("named", [False, True])
def test_save_load_equality_with_weights_only(named: bool, backend: str) -> None:
    for options in configurations(backend):
        _, optimizer = begun(backend, 3, named, **options)
        for weights_only in (False, True):
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            assert_equal(torch.load(file, weights_only=weights_only), optimizer.state_dict())


def test_state_dict_with_cuda_params(backend: str) -> None:
    """From the reference on the CPU to a backend on the device of the tests, where both go on."""
    for options in configurations(backend):
        cpu = Problem(device=torch.device("cpu"))
        reference = ScaleAmendedSGD(cpu.params, backend="reference", **options)
        cpu.run(reference, 3)
        there, optimizer = begun(backend, 0, **options)
        there.copy(cpu)
        saved = copy.deepcopy(reference.state_dict())
        optimizer.load_state_dict(saved)
        assert_equal(saved, reference.state_dict())
        cpu.run(reference, 3)
        there.run(optimizer, 3)
        for got, want in zip(there.params, cpu.params, strict=True):
            assert_close(got, want.to(DEVICE), torch.float32, str(options))
        for state in optimizer.state_dict()["state"].values():
            assert all(value.device == DEVICE for value in state.values())


def write_note(optimizer: Any) -> None:
    optimizer.state["note"] = optimizer.param_groups[0]["lr"]


def move_note(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    return {**state_dict, "note": state_dict["state"].pop("note", None)}


def set_lr(lr: float) -> Callable[[Optimizer, dict[str, Any]], dict[str, Any]]:
    return lambda _, state_dict: {**state_dict, "param_groups": [{**g, "lr": lr} for g in state_dict["param_groups"]]}


def test_state_dict_pre_post_hook(backend: str) -> None:
    _, optimizer = begun(backend, 2, momentum=0.9)
    post = optimizer.register_state_dict_post_hook(move_note)
    assert optimizer.state_dict()["note"] is None
    optimizer.register_state_dict_pre_hook(write_note)
    saved = optimizer.state_dict()
    assert (saved["note"], saved["state"].keys()) == (0.001, {0, 1})
    post.remove()
    assert optimizer.state_dict()["state"]["note"] == 0.001


def test_load_state_dict_pre_post_hook(backend: str) -> None:
    _, optimizer = begun(backend, 2, momentum=0.9)
    saved = optimizer.state_dict()
    optimizer.register_load_state_dict_post_hook(write_note)
    for lr, prepend, last in ((0.002, False, 0.002), (0.003, True, 0.002), (0.004, False, 0.004)):
        optimizer.register_load_state_dict_pre_hook(set_lr(lr), prepend=prepend)
        optimizer.load_state_dict(saved)
        assert (optimizer.param_groups[0]["lr"], optimizer.state["note"]) == (last, last)
    assert saved["param_groups"][0]["lr"] == 0.001


def test_step_all_hooks(backend: str) -> None:
    _, optimizer = begun(backend, 2, momentum=0.9)
    calls: list[str] = []

    def note(text: str) -> Callable[..., None]:
        return lambda *_: calls.append(text)

    handles = [
        register_optimizer_step_pre_hook(note("first")),
        register_optimizer_step_post_hook(note("last")),
        optimizer.register_step_pre_hook(note("before")),
        optimizer.register_step_post_hook(note("after")),
    ]
    try:
        optimizer.step()
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert calls == ["first", "before", "after", "last"] * 2


def test_deepcopy_copies_all_public_attrs(backend: str) -> None:
    _, optimizer = begun(backend, 2, momentum=0.9)
    names = {name for name in vars(optimizer) if not name.startswith("_")}
    assert {name for name in vars(copy.deepcopy(optimizer)) if not name.startswith("_")} == names


def test_non_empty_state(backend: str) -> None:
    for options in configurations(backend):
        _, optimizer = begun(backend, 1, **options)
        assert len(optimizer.state) == (2 if options.get("momentum") else 0)
        assert all(optimizer.state.values())
