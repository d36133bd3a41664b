"""`python -m sasgd_fused.info` tells what is built and what runs, also without the extension."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import extension
from sasgd_fused.info import describe
from tests.helpers import backends


@pytest.mark.parametrize("backend", backends(["native"]))
def test_with_the_extension(backend: str) -> None:
    text = subprocess.run([sys.executable, "-m", "sasgd_fused.info"], check=True, capture_output=True, text=True).stdout
    assert "extension: yes" in text
    cpuinfo = Path("/proc/cpuinfo")
    facts = cpuinfo.read_text() if cpuinfo.exists() else ""
    is_zen_5 = "AuthenticAMD" in facts and "cpu family\t: 26\n" in facts
    distance = 256 if "GenuineIntel" in facts else 512 if is_zen_5 else 64
    assert f"\nprefetch: {distance} elements ahead\n" in text
    assert f"cpu  {backend}    float32, bfloat16, float16; it takes" in text
    assert "cpu  reference float32, bfloat16, float16, float64\n" in text


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "core", None)
    monkeypatch.setattr(extension, "import_error", "No module named 'sasgd_fused._C'", raising=False)


def no_driver() -> int:
    raise RuntimeError("CUDA: no driver is installed")


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        ({}, ["CUDA: no. The extension was built without it.\n", "SASGD_BUILD_CUDA=1 pip install"]),
        (
            {"cuda_devices": no_driver},
            ["CUDA: yes, compiled by nvcc 13.1 for sm_75, sm_90, and later ones\n", "here: CUDA: no dr"],
        ),
        ({"cuda_devices": lambda: 0}, ["It cannot run here: the CUDA driver sees no device.\n"]),
    ],
)
def test_what_is_said_of_cuda(monkeypatch: pytest.MonkeyPatch, parts: dict[str, object], lines: list[str]) -> None:
    core = SimpleNamespace(compiler="GCC", instruction_sets=lambda: ["baseline"], prefetch_distance=lambda: 64, **parts)
    if parts:
        vars(core).update(CudaPlan=object, CUDA_VERSION=13010, CUDA_ARCHITECTURES=[750, 900])
    monkeypatch.setattr(extension, "core", core)
    text = describe()
    for line in lines:
        assert line in text


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension() -> None:
    text = describe()
    assert "extension: no. the compiled extension of sasgd_fused is not there (No module named" in text
    assert "pip install --force-reinstall" in text
    assert "cpu  native    nothing; the compiled extension" in text


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_the_optimizer_works_and_says_so() -> None:
    weight = Parameter(torch.ones(2, 2))
    with pytest.warns(UserWarning, match=r"extension of sasgd_fused is not there .*slower 'foreach' backend") as caught:
        optimizer = ScaleAmendedSGD([weight], lr=0.1)
    assert caught[0].filename == __file__
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert weight[0, 0].item() == pytest.approx(1 - 0.1 * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScaleAmendedSGD([weight], backend="foreach")  # asked for: nothing to say
        ScaleAmendedSGD([weight.double().detach().requires_grad_()])  # native would not take it anyway


@pytest.mark.usefixtures("no_extension")
@pytest.mark.parametrize("options", [{"backend": "native"}, {"fused": True}])
def test_without_the_extension_a_named_native_backend_raises(options: dict[str, object]) -> None:
    with pytest.raises(RuntimeError, match=r"backend: cannot run on cpu .*'native': the compiled extension"):
        ScaleAmendedSGD([Parameter(torch.ones(2, 2))], **options)


def test_float64_goes_to_foreach_by_itself_and_not_to_native() -> None:
    weight = Parameter(torch.ones(2, 2, dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScaleAmendedSGD([weight])
    with pytest.raises(RuntimeError, match=r"not torch\.float64|extension"):
        ScaleAmendedSGD([weight], backend="native")
