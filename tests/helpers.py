"""What the tests share: their device, the backends to be tested, the one tolerance table, and the builder of cases."""

from __future__ import annotations

import importlib.util
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import BACKENDS
from tests.kernels.emulated_cuda import EMULATED_CUDA
from tests.kernels.native_programs import REQUIRED

# Where the parameters of the tests lie, with its index, as tensors and messages have it.
DEVICE = torch.empty(0, device=os.environ.get("SASGD_TEST_DEVICE", "cpu")).device

if DEVICE.type == "cpu" and importlib.util.find_spec("triton"):
    import tests.kernels.interpreter  # noqa: F401

# The emulation is of a device on the CPU, and has no part in a run on a real one.
ALL_BACKENDS = tuple(sorted(name for name in BACKENDS if name != EMULATED_CUDA or DEVICE.type == "cpu"))
# The backends with kernels of their own; the rest run wherever torch does.
FAST_BACKENDS = ("native", EMULATED_CUDA, "triton")

# Largest difference from the reference, relative to the element and to the root mean square of its tensor, after a
# few steps: rounding to the dtype at each store, and float32 arithmetic where the reference has float64.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}
LOW_PRECISION = (torch.float32, torch.bfloat16, torch.float16)


def backends(names: Iterable[str] = ALL_BACKENDS) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`; an absent backend is skipped, or fails if it is required."""
    return [pytest.param(name, marks=_absence(name)) for name in names]


def _absence(name: str) -> Sequence[pytest.MarkDecorator]:
    reason = BACKENDS[name].why_not(DEVICE, [torch.float32])
    if reason is None or ("cuda" if name == EMULATED_CUDA else name) in REQUIRED:
        return ()
    return (pytest.mark.skip(reason=f"{name}: {reason}"),)


def cpu_only(reason: str) -> pytest.MarkDecorator:
    """Skips what is about the CPU alone when the parameters lie elsewhere."""
    return pytest.mark.skipif(DEVICE.type != "cpu", reason=f"the CPU's alone: {reason}")


# For what only a GPU can show. The emulation of the kernels shows all else on the CPU.
cuda_only = pytest.mark.skipif(DEVICE.type != "cuda", reason=f"no CUDA device: the parameters are on {DEVICE}")

# Torch 2.6 has no gradients of another dtype than their parameter's.
other_gradient_dtypes = pytest.mark.skipif(
    not hasattr(Tensor, "grad_dtype"), reason=f"torch {torch.__version__} wants gradients of the parameter's dtype"
)


def skips_on_device(backend: str) -> bool:
    """Whether the kernel alone sees an overflow, so that a skipped step looks like any other to the host."""
    return backend in (EMULATED_CUDA, "triton") or (backend == "native" and DEVICE.type == "cuda")


def message(*parts: str) -> str:
    """A pattern for the parts in this order."""
    return ".*".join(map(re.escape, parts))


def randn(shape: Sequence[int], generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers on the tests' device, drawn on the CPU: so they are the same on every device."""
    return torch.randn(tuple(shape), generator=generator, dtype=dtype, device="cpu").to(DEVICE)


def states_of(optimizer: Optimizer, params: Iterable[Tensor]) -> list[dict[str, Any]]:
    """The state of each parameter as a checkpoint has it.

    On a GPU `optimizer.state` may run ahead of it: a buffer is there before the first step that is not skipped.
    """
    listed = [param for group in optimizer.param_groups for param in group["params"]]
    state = optimizer.state_dict()["state"]
    of_param = {param: state.get(index, {}) for index, param in enumerate(listed)}
    return [of_param[param] for param in params]


def through_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint as it comes back from a file, read with weights_only."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str = "", scale: float = 0.0) -> None:
    """Compares with the tolerance of a dtype; not-a-number equals itself.

    Args:
        actual: what a backend gave.
        expected: what the reference gave.
        dtype: of the values that were stored on the way.
        what: named in the message.
        scale: magnitude of the terms whose sum it is, where that may be larger than the tensor's root mean square.
    """
    actual, expected = actual.detach().double(), expected.detach().double()
    finite = expected[expected.isfinite()]
    rms = float(finite.square().mean().sqrt()) if finite.numel() else 0.0
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance * max(rms, scale),
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


def contiguous(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=DEVICE)


def transposed(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return contiguous(shape[::-1], dtype).permute(tuple(reversed(range(len(shape)))))


def channels_last(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    empty = contiguous(shape, dtype)
    return empty.to(memory_format=torch.channels_last) if len(shape) == 4 else empty


def every_second(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A view whose elements have gaps between them."""
    return torch.zeros((*shape, 2), dtype=dtype, device=DEVICE)[..., 0]


def misaligned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Dense, but one element off any alignment."""
    count = 1
    for size in shape:
        count *= size
    return contiguous((count + 1,), dtype)[1:].view(tuple(shape))


LAYOUTS: dict[str, Callable[[Sequence[int], torch.dtype], Tensor]] = {
    layout.__name__: layout for layout in (contiguous, transposed, channels_last, every_second, misaligned)
}


@dataclass
class Case:
    """Parameters and their gradients, made anew from a seed as often as needed.

    Attributes:
        shapes: one for each parameter.
        dtype: of parameters and gradients.
        layout: of the parameters, a key of LAYOUTS.
        grad_layout: of the gradients.
        options: arguments of the optimizer.
        groups: parameter indices and options of each group; one group with all if empty.
        idle: indices of parameters that get no gradient.
    """

    shapes: Sequence[Sequence[int]]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    grad_layout: str = "contiguous"
    options: dict[str, Any] = field(default_factory=dict)
    groups: Sequence[tuple[Sequence[int], dict[str, Any]]] = ()
    idle: Sequence[int] = ()
    seed: int = 0

    @property
    def carried(self) -> torch.dtype:
        """The least precise dtype in which anything is stored from one step to the next."""
        has_masters = self.options.get("master_weights") and self.dtype != torch.float64
        return self.options.get("momentum_dtype") or (torch.float32 if has_masters else self.dtype)

    def params(self, dtype: torch.dtype | None = None) -> list[Parameter]:
        """The parameters; another dtype holds the same, already rounded values."""
        generator = torch.Generator().manual_seed(self.seed)
        params = []
        for shape in self.shapes:
            values = randn(shape, generator).to(self.dtype)
            place = LAYOUTS[self.layout](shape, dtype or self.dtype)
            params.append(Parameter(place.copy_(values)))
        return params

    def set_grads(self, params: Sequence[Tensor], step: int) -> None:
        """Gives each parameter its gradient of a step."""
        generator = torch.Generator().manual_seed(1000 * self.seed + step + 1)
        for index, param in enumerate(params):
            values = randn(param.shape, generator).to(self.dtype)
            param.grad = None
            if index not in self.idle:
                param.grad = LAYOUTS[self.grad_layout](param.shape, param.dtype).copy_(values)

    def optimizer(self, params: Sequence[Parameter], backend: str) -> ScaleAmendedSGD:
        """The optimizer of the case for parameters that `params` made."""
        groups: Any = list(params)
        if self.groups:
            groups = [{"params": [params[i] for i in indices], **options} for indices, options in self.groups]
        return ScaleAmendedSGD(groups, backend=backend, **self.options)

    def run(
        self, backend: str, steps: int = 3, dtype: torch.dtype | None = None
    ) -> tuple[list[Parameter], ScaleAmendedSGD]:
        """Steps, and returns the parameters and the optimizer."""
        params = self.params(dtype)
        optimizer = self.optimizer(params, backend)
        for step in range(steps):
            self.set_grads(params, step)
            optimizer.step()
        return params, optimizer


def assert_same_run(case: Case, backend: str, steps: int = 3) -> None:
    """Holds a backend's weights, masters and momentum against the reference's, which computes in float64."""
    expected, reference = case.run("reference", steps)
    actual, optimizer = case.run(backend, steps)
    states = zip(states_of(optimizer, actual), states_of(reference, expected), strict=True)
    for index, (a, e, (ours, theirs)) in enumerate(zip(actual, expected, states, strict=True)):
        assert_close(a, e, max(case.dtype, case.carried, key=TOLERANCE.__getitem__), f"parameter {index}")
        assert ours.keys() == theirs.keys(), f"state of parameter {index}"
        for key in ours.keys() & {"momentum_buffer", "master_weight"}:
            is_small = key == "momentum_buffer" and "momentum_dtype" in case.options
            wanted = torch.float32 if case.options.get("master_weights") and not is_small else case.carried
            assert ours[key].dtype == theirs[key].dtype == wanted
            assert_close(ours[key], theirs[key], case.carried, f"{key} {index}")
        if "gradient_norm_sq" in ours:
            rounding = 10 * TOLERANCE[case.carried]
            assert ours["gradient_norm_sq"] == pytest.approx(theirs["gradient_norm_sq"], rel=rounding), index
