"""With 16-bit storage a run is the same to the bit released in backward, compiled, copied, and saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sasgd_fused import ScaleAmendedSGD
from tests.helpers import DEVICE, backends, randn, states_of
from tests.storage_cases import STORAGE, case_of, kept_keys, momentum_dtype, optimizer_for, to_the_bit
from tests.tiers import thin

on_all = pytest.mark.parametrize("backend", backends())
over_storage = pytest.mark.parametrize("storage", STORAGE)


def network(storage: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3)).to(DEVICE, STORAGE[storage][0])


def backward(model: nn.Module, step: int) -> None:
    inputs = randn((4, 6), torch.Generator().manual_seed(step), torch.float32)
    loss: Tensor = model(inputs.to(next(model.parameters()).dtype)).square().mean()
    loss.backward()


def outcome(optimizer: ScaleAmendedSGD) -> list[Any]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    assert all(bool(param.isfinite().all()) for param in params)  # or nothing could be told apart
    return [*to_the_bit(params, states_of(optimizer, params)), optimizer.layer_report()]


@on_all
@over_storage
def test_released_in_backward(storage: str, backend: str) -> None:
    """Wholly, and from the middle on and not to the end."""
    runs = []
    for released in (range(0), range(5), range(2, 4)):
        model = network(storage)
        optimizer = optimizer_for(model, storage, backend=backend)
        for step in range(5):
            if step in released:
                handle = optimizer.release_gradients_in_backward()
            elif released and step == released.stop:
                handle.remove()
            optimizer.zero_grad()
            backward(model, step)
            assert all((param.grad is None) == (step in released) for param in model.parameters())
            optimizer.step()
        runs.append(outcome(optimizer))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.filterwarnings("ignore")  # of torch's own, about the profiler and about dynamo itself
@on_all
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled(compiler: str, backend: str) -> None:
    for storage in ("masters", "stochastic weights", "all"):
        runs = []
        for is_compiled in (False, True):
            model = network(storage)
            optimizer = optimizer_for(model, storage, backend=backend)
            step: Callable[[], object] = optimizer.step
            if is_compiled:
                torch._dynamo.reset()
                step = torch.compile(lambda: optimizer.step(), backend=compiler)  # noqa: B023
            for number in range(4):
                optimizer.zero_grad()
                backward(model, number)
                step()
            runs.append(outcome(optimizer))
        assert runs[0] == runs[1], storage


def through_pickle(optimizer: ScaleAmendedSGD) -> ScaleAmendedSGD:
    copied = pickle.loads(pickle.dumps(optimizer))
    assert isinstance(copied, ScaleAmendedSGD)
    return copied


@thin(slow=1)
@on_all
@over_storage
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("begun", [0, 2])
def test_from_a_copy(begun: int, duplicate: Any, storage: str, backend: str) -> None:
    """The copy has masters of its own, and draws the random numbers that the original draws."""
    case = case_of(storage)
    params, optimizer = case.run(backend, begun)
    twin = duplicate(optimizer)
    theirs = twin.param_groups[0]["params"]
    assert outcome(twin) == outcome(optimizer)
    for step in range(begun, begun + 2):
        case.set_grads(params, step)
        optimizer.step()
    assert outcome(twin) != outcome(optimizer)
    for step in range(begun, begun + 2):
        case.set_grads(theirs, step)
        twin.step()
    assert outcome(twin) == outcome(optimizer)


@thin(slow=1)
@on_all
@over_storage
@pytest.mark.parametrize("norms", ["track", "freeze"])
def test_from_a_file(norms: str, storage: str, backend: str) -> None:
    """Written by torch.save and read with weights_only, into parameters that were others."""
    case = case_of(storage)
    case.options["norms"] = norms
    params, optimizer = case.run(backend, 2)
    file = io.BytesIO()
    torch.save({"model": [param.detach() for param in params], "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, map_location="cpu", weights_only=True)
    for index, param in enumerate(params):
        state = saved["optimizer"]["state"][index]
        assert set(state) - {"row_norm_sq"} == set(kept_keys(storage)) - (set() if param.numel() else {"rounding_step"})
        assert state["momentum_buffer"].dtype == momentum_dtype(storage)

    others, resumed = case_of(storage, seed=1, options=case.options).run(backend, 1)
    resumed.load_state_dict(saved["optimizer"])
    with torch.no_grad():
        for param, value in zip(others, saved["model"], strict=True):
            param.copy_(value)
    assert to_the_bit(others, states_of(resumed, others)) == to_the_bit(params, states_of(optimizer, params))
    for step in range(2, 5):
        for stepping, of_run in ((optimizer, params), (resumed, others)):
            case.set_grads(of_run, step)
            stepping.step()
    assert outcome(resumed) == outcome(optimizer)
