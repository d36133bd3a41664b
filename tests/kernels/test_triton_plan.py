"""Plans of the Triton kernels: places that 32 bits cannot number, and tensors that do not go together."""

from __future__ import annotations

from array import array

import pytest
import torch

from sasgd_fused.backends.device_state import CarriedState
from sasgd_fused.backends.rounding import _bits_of, round_stochastically
from sasgd_fused.precision import mix
from tests.helpers import backends, cpu_only

pytestmark = [cpu_only("Triton's interpreter runs there"), pytest.mark.parametrize("backend", backends(["triton"]))]


@pytest.mark.parametrize("has_master", [False, True])
def test_places_beyond_32_bits(has_master: bool, backend: str) -> None:
    """Of a tensor of which only the last two chunks are in memory."""
    from sasgd_fused.backends.triton import columns
    from sasgd_fused.backends.triton.kernel import TritonKernel

    count, absent, stream, rounding_step = 8192 + 5, 3 * 2**32 // 8192 + 2, 2**64 - 12345, 6
    generator = torch.Generator().manual_seed(1)
    weight, grad, buffer = (torch.randn(count, generator=generator).to(torch.bfloat16) for _ in range(3))
    copy = weight.clone()
    weight = weight.float() if has_master else weight
    offset = absent * columns.CHUNK.value
    key = mix(mix(stream + rounding_step) + (offset >> 32))
    words = _bits_of(offset + torch.arange(count), key)
    moved = 0.5 * buffer.float() + grad.float()
    expected = weight.float() - 0.25 * moved

    steps = torch.tensor([rounding_step])
    flags = torch.ones(1, dtype=torch.uint8)  # started
    nothing, norms = torch.zeros(0, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    plan = TritonKernel(
        torch.device("cpu"),
        CarriedState(nothing, nothing, nothing.long(), flags, steps, norms, norms.clone()),
        tensors=[(count, 0, 0 if has_master else 1)],
        layers=[],
        precision=[(int(has_master), has_master, True, stream)],
        eps=1.0,
        shape_decay=False,
        track_norms=True,
        relative=False,
    )
    plan._tensors[0, columns.FIRST_CHUNK.value] -= absent
    plan._tensors[0, columns.NUMEL.value] += offset
    weights, grads, buffers, copies = (
        array("Q", [tensor.data_ptr() - offset * tensor.element_size()]) for tensor in (weight, grad, buffer, copy)
    )
    plan.place(weights, buffers, copies)
    plan.step(grads, array("Q", [1]), array("d", [0.25, 0.5, 0.0, 0.0, 0.0, 0.0]), {}, None, None, False)

    assert torch.equal(buffer, round_stochastically(moved, words >> 16))
    assert torch.equal(weight, expected if has_master else round_stochastically(expected, words & 0xFFFF))
    assert torch.equal(copy, expected.to(torch.bfloat16)) is has_master
    assert steps.tolist() == [rounding_step + 1]


@pytest.mark.parametrize(
    "storage",
    [
        [(1, False, False, 0), (0, False, False, 0)],  # a master, and a parameter of 16 bits without one
        [(0, False, True, 0), (0, False, False, 0)],  # rounded by chance, and to nearest
        [(0, False, True, 0), (0, True, True, 0)],  # small momentum of 16-bit weights
    ],
)
def test_tensors_of_one_dtype_are_stored_alike(storage: list[tuple[int, bool, bool, int]], backend: str) -> None:
    from sasgd_fused.backends.triton.variant import variant_of

    tensors = [(1, 0, 0 if copy else 1) for copy, *_ in storage]
    with pytest.raises(ValueError, match=r"^precision: tensor 1 is stored otherwise"):
        variant_of(tensors, storage, relative=False)
