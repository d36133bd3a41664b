"""Which machines the Triton backend runs on, what it says of the others, and who takes its place."""

from __future__ import annotations

import importlib.util
import re
from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends.native import NativeBackend
from sasgd_fused.backends.triton import backend as triton_backend
from sasgd_fused.backends.triton.backend import TritonBackend
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


@pytest.mark.parametrize(
    ("device", "target", "reason"),
    [
        ("cuda", "cuda", None),
        ("cuda", "hip", None),
        ("cuda", None, "Triton 3.* finds no GPU: 0 active drivers"),
        ("cuda", "xpu", "Triton 3.* compiles for xpu, not for cuda"),
        ("mps", None, "it has no kernel for mps"),
        ("cpu", None, r"it runs on GPUs, and on the CPU only in Triton's interpreter \(TRITON_INTERPRET=1\)"),
    ],
)
def test_why_not(
    monkeypatch: pytest.MonkeyPatch, device: str, target: str | None, reason: str | None, backend: str
) -> None:
    import triton

    monkeypatch.setattr(triton.runtime, "driver", Driver(target))
    monkeypatch.setattr(triton_backend, "_usable_devices", set())
    monkeypatch.setattr(triton_backend, "_is_interpreted", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET")
    said = TritonBackend.why_not(torch.device(device), [torch.float32])
    assert said is None if reason is None else re.match(reason, said or "")
    assert "float64" in str(TritonBackend.why_not(torch.device(device), [torch.float64]))


def test_without_triton(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(triton_backend, "_usable_devices", set())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert TritonBackend.why_not(torch.device("cuda"), []) == "Triton is not installed (pip install triton)"
    monkeypatch.undo()
    monkeypatch.setattr("triton.__version__", "3.2.0")
    assert TritonBackend.why_not(torch.device("xpu"), []) == "Triton 3.2.0 is too old, 3.3 is wanted"


def test_interpreted_kernels_cannot_run_on_a_gpu(backend: str) -> None:
    assert "cannot read the memory of a GPU" in str(TritonBackend.why_not(torch.device("cuda"), []))


@pytest.mark.parametrize(
    ("native", "triton", "chosen"),
    [(None, None, "native"), ("no", None, "triton"), ("no", "no", "foreach"), (None, "no", "native")],
)
def test_the_fastest_that_works_is_taken(
    monkeypatch: pytest.MonkeyPatch, native: str | None, triton: str | None, chosen: str, backend: str
) -> None:
    """Silently: `python -m sasgd_fused.info` says why."""
    monkeypatch.setattr(NativeBackend, "why_not", lambda device, dtypes: native)
    monkeypatch.setattr(TritonBackend, "why_not", lambda device, dtypes: triton)
    weight = Parameter(torch.ones(2, 2))
    (made,) = ScaleAmendedSGD([weight])._backends or []
    assert made.name == chosen
    if chosen == "foreach":
        with pytest.raises(RuntimeError, match="cannot run on cpu with these parameters: 'native': no; 'triton': no"):
            ScaleAmendedSGD([weight], fused=True)
    else:
        (made,) = ScaleAmendedSGD([weight], fused=True)._backends or []
        assert made.name == chosen
    (made,) = ScaleAmendedSGD([weight], fused=False)._backends or []
    assert made.name == "foreach"
