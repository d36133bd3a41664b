"""A few steps over tensors of odd sizes: `python -m tools.small_case DEVICE`, made for compute-sanitizer.

Nothing but the optimizer computes on the device: what is checked is its kernels, and the tools slow down all others.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn import Parameter

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import BACKENDS

# Less than a thread's share, less than a chunk, several chunks; a multiple of no vector; nothing at all.
SHAPES = ((1,), (3, 5), (0, 4), (17, 31), (129, 257), (40_009,), (7, 3, 3, 3), (10, 129))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STEPS = 3
OPTIONS: tuple[dict[str, object], ...] = (
    {"momentum": 0.9, "weight_decay": 1e-2},
    {"momentum": 0.9, "nesterov": True, "norms": "freeze", "decay": "shape"},
    {"momentum": 0.0, "head": "plain"},
)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Returns random numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).mul_(0.1).to(dtype)


def place(tensor: Tensor, device: str, is_misaligned: bool) -> Tensor:
    """Copies a tensor to the device; on wish one element beyond any alignment."""
    if not is_misaligned:
        return tensor.to(device)
    padded = torch.cat([tensor.new_zeros(1), tensor.flatten()])
    return padded.to(device)[1:].view(tensor.shape)


def run(backend: str, device: str, options: dict[str, object]) -> list[Tensor]:
    """Takes some steps, the last after a norm pass; returns the weights."""
    params = [
        Parameter(place(values(shape, dtype, seed), device, is_misaligned=seed % 2 == 1))
        for seed, (dtype, shape) in enumerate((dtype, shape) for dtype in DTYPES for shape in SHAPES)
    ]
    optimizer = ScaleAmendedSGD(params, lr=1e-3, backend=backend, **options)  # type: ignore[arg-type]
    for step in range(STEPS):
        for seed, param in enumerate(params):
            grad = values(tuple(param.shape), param.dtype, 1000 * (step + 1) + seed)
            param.grad = place(grad, device, is_misaligned=seed % 3 == 1)
        if step == STEPS - 1:
            optimizer.refresh_norms()
        optimizer.step()
    return [param.detach().cpu() for param in params]


def main() -> None:
    """Takes the steps and holds the weights against the reference's: a case that did nothing would prove nothing."""
    (device,) = sys.argv[1:]
    reasons = {name: BACKENDS[name].why_not(torch.device(device), DTYPES) for name in ("native", "triton")}
    for name, reason in reasons.items():
        if reason:
            print(f"without {name!r}: {reason}")
    backends = [name for name, reason in reasons.items() if not reason]
    for backend in backends:
        for options in OPTIONS:
            for actual, expected in zip(run(backend, device, options), run("reference", "cpu", options), strict=True):
                torch.testing.assert_close(actual, expected)
    runs = len(backends) * len(OPTIONS)
    print(f"{runs} runs of {STEPS} steps over {len(DTYPES) * len(SHAPES)} tensors are as the reference's")
    if "native" not in backends:
        sys.exit(1)


if __name__ == "__main__":
    main()
