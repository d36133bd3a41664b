"""Masters, small momentum and stochastic rounding in Triton: the reference's numbers, and the other kernels' bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends.fused import FusedBackend
from tests.helpers import LAYOUTS, TOLERANCE, assert_close, backends, cpu_only, states_of
from tests.kernels.emulated_cuda import EMULATED_CUDA
from tests.kernels.emulated_runs import give_scaler
from tests.tiers import thin

pytestmark = [cpu_only("Triton's interpreter runs there"), pytest.mark.parametrize("backend", backends(["triton"]))]

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SMALL, STOCHASTIC = {"momentum_dtype": BF16}, {"rounding": "stochastic", "rounding_seed": 7}
MASTERS = {"master_weights": True}
# Options, and the dtypes of the parameters that they are for: they take turns.
STORED: dict[str, tuple[dict[str, Any], tuple[torch.dtype, ...]]] = {
    "masters": (MASTERS, (BF16, F16, F32)),
    "small momentum": (SMALL, (BF16, F32)),
    "stochastic": (STOCHASTIC, (BF16, F32)),
    "small momentum, stochastic": ({**SMALL, **STOCHASTIC}, (F32, BF16)),
    "masters, small momentum": ({**MASTERS, **SMALL}, (BF16, F16, F32)),
    "masters, small momentum, stochastic": ({**MASTERS, **SMALL, **STOCHASTIC}, (F16, F32, BF16)),
    "stochastic, without momentum": ({**STOCHASTIC, "momentum": 0.0, "dampening": 0.0}, (BF16,)),
}
RULE = {"lr": 0.01, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.02, "output_width": 10_000}
RELATIVE = {"scale": "relative", "lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.02}
# With tails, several chunks, nothing, and one element; layers, and vectors, whose scale is 1.
SHAPES = [(6, 3, 3, 3), (7, 2400), (11,), (0, 4), (), (5, 11), (2, 37)]
VECTORS = [(5,), (2 * 8192 + 3,), (1,), (8192,), (777,)]


@dataclass
class Run:
    """A model and its optimizer, the same again from the same arguments."""

    stored: str
    backend: str
    shapes: list[tuple[int, ...]]
    layout: str = "contiguous"
    wide: bool = False  # float32 gradients
    rule: dict[str, Any] = field(default_factory=lambda: RULE)

    def __post_init__(self) -> None:
        options, dtypes = STORED[self.stored]
        generator = torch.Generator().manual_seed(3)
        self.params: list[Parameter] = []
        for index, shape in enumerate(self.shapes):
            place = LAYOUTS[self.layout](shape, dtypes[index % len(dtypes)])
            self.params.append(Parameter(place.copy_(torch.randn(shape, generator=generator))))
        self.optimizer = ScaleAmendedSGD(self.params, backend=self.backend, **{**self.rule, **options})
        self.taken = 0

    def step(self, times: int = 1) -> Run:
        for _ in range(times):
            self.taken += 1
            generator = torch.Generator().manual_seed(self.taken)
            for param in self.params:
                values = 0.1 * torch.randn(param.shape, generator=generator)
                if self.wide:
                    param.grad_dtype = None
                param.grad = values if self.wide else torch.empty_like(param).copy_(values.to(param.dtype))
            self.optimizer.step()
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and their states, as a checkpoint has them."""
        found: dict[str, Tensor] = {}
        for index, (param, state) in enumerate(zip(self.params, states_of(self.optimizer, self.params), strict=True)):
            named = {"param": param.detach(), **state}
            found |= {f"{name} {index}": torch.as_tensor(value) for name, value in named.items()}
        return found


def assert_same_bits(ours: Run, theirs: Run) -> None:
    mine, others = ours.tensors(), theirs.tensors()
    assert mine.keys() == others.keys()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, tensor in mine.items():
        assert tensor.dtype == others[name].dtype, name
        words, other_words = (t.contiguous().view(integers[t.element_size()]) for t in (tensor, others[name]))
        assert torch.equal(words, other_words), name


over_rules = pytest.mark.parametrize("rule", [RULE, RELATIVE], ids=["amended", "relative"])


@thin(slow=1)
@pytest.mark.parametrize("twin", backends([EMULATED_CUDA]))
@over_rules
@pytest.mark.parametrize("layout", ["contiguous", "misaligned"])
@pytest.mark.parametrize("stored", STORED)
def test_it_has_the_bits_of_cuda(stored: str, layout: str, rule: dict[str, Any], twin: str, backend: str) -> None:
    wide = layout == "misaligned"
    ours, theirs = (Run(stored, name, SHAPES, layout, wide, rule).step(2) for name in (backend, twin))
    assert_same_bits(ours, theirs)
    assert ours.optimizer.layer_report() == theirs.optimizer.layer_report()


@pytest.mark.parametrize("wide", [False, True], ids=["", "float32 gradients"])
@pytest.mark.parametrize("stored", STORED)
def test_it_has_the_bits_of_the_cpu_where_no_norm_is_taken(stored: str, wide: bool, backend: str) -> None:
    """Sums of squares are added up in another order there."""
    assert_same_bits(*(Run(stored, name, VECTORS, wide=wide).step(3) for name in (backend, "native")))


@thin(slow=1)
@over_rules
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
@pytest.mark.parametrize("stored", STORED)
def test_it_does_what_the_reference_does(stored: str, layout: str, rule: dict[str, Any], backend: str) -> None:
    """Which computes in float64: so now and then another value of 16 bits is the nearest, or falls to chance."""
    ours, theirs = (Run(stored, name, SHAPES, layout, rule=rule).step(2).tensors() for name in (backend, "reference"))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype, name
        if not expected.is_floating_point():
            assert torch.equal(ours[name], expected), name
            continue
        assert_close(ours[name], expected, BF16, name)
        others = ours[name] != expected
        if expected.dtype == F32:
            rms = expected.square().mean().sqrt()
            others = (ours[name] - expected).abs() > TOLERANCE[F32] * (expected.abs() + rms)
        assert others.sum() <= 1 + expected.numel() // 200, name


@pytest.mark.parametrize("stored", STORED)
def test_a_skipped_step_counts_for_nothing(stored: str, backend: str) -> None:
    ours, theirs = (Run(stored, backend, SHAPES[2:]) for _ in range(2))
    ours.step()
    before = {name: tensor.clone() for name, tensor in ours.tensors().items()}
    give_scaler(ours.optimizer, torch.ones(()))
    ours.optimizer.step()
    for name, tensor in ours.tensors().items():
        assert torch.equal(tensor, before[name]), name
    give_scaler(ours.optimizer, torch.zeros(()))
    assert_same_bits(ours.step(), theirs.step(2))


def test_a_captured_step_counts_on_and_sends_no_addresses(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """The interpreter runs at once what a graph would run when it is replayed."""
    from sasgd_fused.backends.triton.kernel import TritonKernel

    ours, theirs = (Run("masters, small momentum, stochastic", backend, SHAPES[2:]).step() for _ in range(2))
    (made,) = ours.optimizer._stepper.backends or []
    with monkeypatch.context() as patch:
        patch.setattr(TritonKernel, "is_capturing", lambda plan: True)
        patch.setattr(TritonKernel, "place", None)
        ours.step(2)
    assert_same_bits(ours, theirs.step(2))
    assert isinstance(made, FusedBackend)
    ids = set(map(id, made.memory()))
    assert {id(made.device_state.carried.rounding_steps), id(made.kernel._params.on_device)} <= ids  # type: ignore[attr-defined]


def test_parameters_and_masters_may_move(backend: str) -> None:
    ours, theirs = (Run("masters", backend, SHAPES[2:]).step() for _ in range(2))
    for param in ours.params:
        param.data = param.data.clone()
    ours.step()
    for state in ours.optimizer.state.values():
        if "master_weight" in state:
            state["master_weight"] = state["master_weight"].clone()
    assert_same_bits(ours.step(), theirs.step(2))


def test_what_the_compiler_takes_for_aligned_is(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Masters and momentum always are, parameters perhaps not."""
    from triton.runtime.interpreter import TensorHandle

    seen, set_attr = [], TensorHandle.set_attr

    def checked_set_attr(handle: Any, name: str, values: Any) -> None:
        if name == "tt.divisibility":
            seen.append(int(handle.data[0]) % int(values[0]))
        set_attr(handle, name, values)

    monkeypatch.setattr(TensorHandle, "set_attr", checked_set_attr)
    Run("masters", backend, [(2400,)] * 3, "misaligned").step()
    assert not any(seen)
    Run("masters", backend, [(2400,)] * 3).step()
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("stored", ["stochastic", "masters, small momentum, stochastic"])
def test_what_is_no_number_stays_so(stored: str, backend: str) -> None:
    """Also where random bits are added to those of a NaN, which may have all of them set."""
    runs = [Run(stored, name, [(64,), (64,), (64,)]) for name in (backend, "native")]
    strange = [float("nan"), float("inf"), float("-inf"), 3.38e38, -3.38e38, 0.0, 1e-40]
    for run in runs:
        with torch.no_grad():
            for param in run.params:
                param[: len(strange)] = torch.tensor(strange)
                param[8] = torch.tensor(-1, dtype=torch.int32).view(F32)
        run.step(2)
    ours, theirs = (run.tensors() for run in runs)
    for name, tensor in ours.items():
        assert torch.equal(tensor.isnan(), theirs[name].isnan()), name
        assert torch.equal(tensor.nan_to_num(), theirs[name].nan_to_num()), name
    assert all(bool(param[0].isnan() & param[8].isnan() & ~param[5].isnan()) for param in runs[0].params)
