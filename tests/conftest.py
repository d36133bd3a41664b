"""The device of the tests: SASGD_TEST_DEVICE names it, and without that it is the CPU."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

with warnings.catch_warnings():
    # What torch says of the machine when it is first imported, as of a missing NumPy, which no test needs, is no error.
    warnings.simplefilter("ignore")
    import torch

from tests.helpers import DEVICE, backends
from tests.kernels.emulated_cuda import EMULATED_CUDA, emulated_module
from tests.tiers import COLLECTED, assign

if DEVICE.type == "cuda":
    # cuDNN rounds float32 to TF32 and may take another algorithm in the next run. Without it convolutions are as exact
    # as on the CPU, and a model gives the same gradients every time.
    torch.backends.cudnn.enabled = False

# On a busy machine threads that wait for each other take a hundred times as long. What several threads do is tested
# where `set_num_threads` says so.
torch.set_num_threads(1)

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    for profile, examples in {"quick": 100, "all": 3000}.items():
        settings.register_profile(profile, max_examples=examples, deadline=None, derandomize=True)
    settings.load_profile("quick")


def pytest_report_header() -> str:
    """Says in the log what was tested."""
    return f"parameters on: {DEVICE}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """Before pytest chooses among them by their marks."""
    assign(items)
    config.stash[COLLECTED] = [item for item in items if isinstance(item, pytest.Function)]


@pytest.fixture
def default_device() -> Iterator[None]:
    """Makes what a test creates without naming a device on the tests' device.

    Only tests that write tensors out by hand ask for it. Those that are made of a `Case` do not: in their place the
    optimizer, too, would get tensors on the right device without having asked for it.
    """
    if DEVICE.type == "cpu":
        yield
    else:
        with DEVICE:
            yield


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads for one test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture
def two_threads(set_num_threads: Callable[[int], None]) -> None:
    """Has a test run with two threads."""
    set_num_threads(2)


@pytest.fixture(params=backends(["native"]))
def core() -> Iterator[ModuleType]:
    """The compiled module, whose instruction set and prefetch distance are put back afterwards."""
    from sasgd_fused import _C

    distance = _C.prefetch_distance()
    yield _C
    _C.use_instruction_set(_C.instruction_sets()[0])
    _C.use_prefetch_distance(distance)


@pytest.fixture(params=backends([EMULATED_CUDA]))
def emulation() -> Iterator[ModuleType]:
    """The emulated device, as it is in the beginning."""
    module = emulated_module()
    module.reset()
    yield module
    module.reset()


@pytest.fixture(params=backends([EMULATED_CUDA, "triton"]))
def device_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend whose device is emulated, as it is in the beginning: what it knows, the host learns late."""
    emulated = [emulated_module()] if request.param == EMULATED_CUDA else []
    for module in emulated:
        module.reset()
    yield request.param
    for module in emulated:
        module.reset()
