"""Masters, small momentum and stochastic rounding in every memory layout that parameters may have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.layout import has_layout_of
from tests.helpers import LAYOUTS, assert_close, backends, states_of
from tests.storage_cases import NEAREST, STOCHASTIC, STORAGE, case_of, momentum_dtype, to_the_bit
from tests.tiers import thin

SHAPE = (6, 5, 4, 3)
on_all = pytest.mark.parametrize("backend", backends())


@thin(slow=1)
@on_all
@pytest.mark.parametrize("storage", NEAREST)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", ["contiguous", "every_second"])
def test_any_layout(grad_layout: str, layout: str, storage: str, backend: str) -> None:
    """What the state has lies in memory as a dense copy of the parameter does."""
    expected, reference = case_of(storage).run("reference")
    params, optimizer = case_of(storage, layout=layout, grad_layout=grad_layout).run(backend)
    assert_same_state(params, optimizer, expected, reference, storage)
    for param in params:
        assert all(has_layout_of(kept, param) for kept in optimizer.state[param].values() if isinstance(kept, Tensor))


def assert_same_state(
    params: list[Parameter],
    optimizer: ScaleAmendedSGD,
    expected: list[Parameter],
    reference: ScaleAmendedSGD,
    storage: str,
) -> None:
    """Within the table's tolerance for what is rounded most coarsely on the way."""
    coarsest = momentum_dtype(storage)
    states = zip(states_of(optimizer, params), states_of(reference, expected), strict=True)
    for index, (a, e, (ours, theirs)) in enumerate(zip(params, expected, states, strict=True)):
        assert_close(a, e, torch.bfloat16 if coarsest == torch.bfloat16 else a.dtype, f"parameter {index}")
        assert ours.keys() == theirs.keys()
        for key, kept in ours.items():
            if key == "row_norm_sq":
                continue
            assert kept.dtype == theirs[key].dtype
            assert_close(kept, theirs[key], coarsest, f"{key} {index}")
        if "master_weight" in ours:
            assert torch.equal(ours["master_weight"].to(a.dtype), a)


@thin(slow=1)
@on_all
@pytest.mark.parametrize("storage", NEAREST)
@pytest.mark.parametrize("in_place", [False, True])
def test_another_layout_between_steps(in_place: bool, storage: str, backend: str) -> None:
    """Masters and momentum go along, both ways, also where the memory stays the same."""
    case = case_of(storage)
    case.options["norms"] = "freeze"  # in another order the sum of squares, which tells of unseen writes, is another
    params = case.params()
    optimizer = case.optimizer(params, backend)
    for step in range(3):
        case.set_grads(params, step)
        optimizer.step()
        for param in params:
            if param.dim() == 4:
                to = torch.channels_last if step == 0 else torch.contiguous_format
                values = param.data.clone(memory_format=to)
                param.data = torch.as_strided(param.data, values.shape, values.stride()) if in_place else values
                param.data.copy_(values)
    assert_same_state(params, optimizer, *case.run("reference"), storage)


@thin(slow=1)
@on_all
@pytest.mark.parametrize("storage", ["masters", "masters, float16"])
@pytest.mark.parametrize("norms", ["track", "freeze"])
def test_memory_with_other_values_in_the_place_of_a_parameters(norms: str, storage: str, backend: str) -> None:
    """As torch.nn.utils.vector_to_parameters writes; no version counter shows it, but the address does."""
    runs = []
    for replaced in (True, False):
        case = case_of(storage)
        case.options["norms"] = norms
        params, optimizer = case.run(backend, 2)
        if replaced:
            vector_to_parameters(parameters_to_vector(params).detach() * 1.5, params)
        else:
            with torch.no_grad():
                for param in params:
                    param.mul_(1.5)
        case.set_grads(params, 2)
        optimizer.step()
        runs.append(to_the_bit(params, states_of(optimizer, params)))
    assert runs[0] == runs[1]


@on_all
@pytest.mark.parametrize("storage", STOCHASTIC)
def test_random_numbers_go_by_the_place_in_memory(storage: str, backend: str) -> None:
    """They are the same whatever that place means, and for all backends; gaps have none."""
    drawn = {}
    for name in (backend, "reference"):
        for layout, place in LAYOUTS.items():
            param = Parameter(place(SHAPE, STORAGE[storage][0]).fill_(1.0))
            groups = [{"params": [param], "amend": False, "weight_decay": 0.3}]  # by which something is to be rounded
            optimizer = ScaleAmendedSGD(groups, lr=0.01, momentum=0.9, **STORAGE[storage][1], backend=name)
            for _ in range(2):
                param.grad = torch.ones_like(param)
                optimizer.step()
            kept = param if storage == "stochastic weights" else optimizer.state[param]["momentum_buffer"]
            drawn[name, layout] = in_order_of_memory(kept.detach()).float().tolist()
    first, *others = drawn.values()
    assert len(set(first)) > 2, "rounded up and down, in both steps"
    assert all(other == first for other in others)


def in_order_of_memory(tensor: Tensor) -> Tensor:
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).flatten()
