"""Which machines the Triton backend runs on, what it says of the others, and who takes its place."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import BACKENDS, FUSED, Entry, candidate_backends, make_backend
from sasgd_fused.backends.triton import availability
from tests.helpers import backends, cpu_only

pytestmark = [cpu_only("Triton's interpreter runs there"), pytest.mark.parametrize("backend", backends(["triton"]))]


class Driver:
    """In the place of Triton's: it has found a target, or fails as on a machine without a GPU."""

    def __init__(self, target: str | None) -> None:
        self._target = target

    @property
    def active(self) -> Driver:
        if self._target is None:
            raise RuntimeError("0 active drivers ([]). There should only be one.")
        return self

    def get_current_target(self) -> SimpleNamespace:
        return SimpleNamespace(backend=self._target)


@pytest.fixture
def triton_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, str], None]:
    """Has Triton find a target, with kernels that compile or do not."""
    import triton

    from sasgd_fused.backends.triton import compiled, kernel

    def find(target: str | None, failure: str = "") -> None:
        def compiled_kernels(device: torch.device) -> None:
            if failure:
                raise RuntimeError(failure)

        monkeypatch.setattr(triton.runtime, "driver", Driver(target))
        monkeypatch.setattr(availability, "_reasons", {})
        monkeypatch.setattr(availability, "_is_interpreted", lambda: False)
        monkeypatch.setattr(compiled, "compiled_kernels", compiled_kernels)
        monkeypatch.setattr(kernel, "on_device", lambda device: nullcontext())

    return find


@pytest.mark.parametrize(
    ("device", "target", "failure", "reason"),
    [
        ("cuda", "cuda", "", None),
        ("cuda", "hip", "", None),
        ("cuda", None, "", "Triton 3.* cannot use cuda: 0 active drivers"),
        ("cuda", "cuda", "Failed to find C compiler", "Triton 3.* cannot use cuda: Failed to find C compiler"),
        ("cuda", "xpu", "", "Triton 3.* compiles for xpu, not for cuda"),
        ("mps", None, "", "it has no kernel for mps"),
    ],
)
def test_why_not_a_device(
    triton_for: Callable[[str | None, str], None],
    device: str,
    target: str | None,
    failure: str,
    reason: str | None,
    backend: str,
) -> None:
    triton_for(target, failure)
    said = availability.why_not(torch.device(device), [torch.float32])
    assert said is None if reason is None else re.match(reason, said or "")
    assert "float64" in str(availability.why_not(torch.device(device), [torch.float64]))


@pytest.mark.parametrize("is_set", [True, False])
def test_why_not_the_interpreter(monkeypatch: pytest.MonkeyPatch, is_set: bool, backend: str) -> None:
    if is_set:  # to 0, say, which Triton takes for unset
        monkeypatch.setattr(availability, "_is_interpreted", lambda: False)
    else:
        monkeypatch.delenv("TRITON_INTERPRET")
    said = str(availability.why_not(torch.device("cpu"), [torch.float32]))
    assert said.startswith("it runs on GPUs, and on the CPU only in Triton's interpreter (TRITON_INTERPRET=1 ")


def test_the_interpreter_is_only_taken_where_it_is_named(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setitem(BACKENDS, "native", BACKENDS["native"]._replace(why_not=lambda device, dtypes: "no"))
    weight = Parameter(torch.ones(2, 2))
    (made,) = ScaleAmendedSGD([weight])._stepper.backends or []
    assert made.name == "foreach"
    with pytest.raises(RuntimeError, match="'triton': its interpreter is for tests"):
        ScaleAmendedSGD([weight], fused=True)


def test_without_a_triton_that_works(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(availability, "_reasons", {})
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert availability.why_not(torch.device("cuda"), []) == "Triton is not installed (pip install triton)"
    with monkeypatch.context() as patch:
        patch.setattr(availability, "_reasons", {})
        patch.setattr("triton.__version__", "3.2.0")
        assert availability.why_not(torch.device("xpu"), []) == "Triton 3.2.0 is too old, 3.4 is wanted"
    monkeypatch.setattr(availability, "_reasons", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "Triton cannot be imported: import of triton halted" in str(availability.why_not(torch.device("cuda"), []))


def test_interpreted_kernels_cannot_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(availability, "_reasons", {})
    assert "cannot read the memory of a GPU" in str(availability.why_not(torch.device("cuda"), []))


@pytest.mark.parametrize(
    ("native", "triton", "chosen"),
    [(None, None, "native"), ("no", None, "triton"), ("no", "no", "foreach"), (None, "no", "native")],
)
def test_the_fastest_that_works_is_taken(
    monkeypatch: pytest.MonkeyPatch, native: str | None, triton: str | None, chosen: str, backend: str
) -> None:
    """Silently: `python -m sasgd_fused.info` says why."""
    made: list[str] = []

    def entry(name: str, reason: str | None) -> Entry:
        return Entry(lambda device, dtypes: reason, lambda plan, state: made.append(name))  # type: ignore

    for name, reason in (("native", native), ("triton", triton), ("foreach", None)):
        monkeypatch.setitem(BACKENDS, name, entry(name, reason))
    plan = SimpleNamespace(params=[torch.ones(2)], device=torch.device("cuda", 0))
    make_backend(plan, {}, candidate_backends(None, None, None))
    make_backend(plan, {}, candidate_backends(None, False, None) if chosen != "foreach" else ("foreach",))
    assert made == [chosen] * 2
    if chosen == "foreach":
        with pytest.raises(
            RuntimeError, match="cannot run on cuda:0 with these parameters: 'native': no; 'triton': no"
        ):
            make_backend(plan, {}, candidate_backends(None, None, True))
    else:
        make_backend(plan, {}, candidate_backends(None, None, True))
    assert candidate_backends(None, None, False) == tuple(name for name in BACKENDS if name not in FUSED)
