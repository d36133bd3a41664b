"""The kernels as compiled for one device, all before the first is launched: so no step fails between two launches."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton

from sasgd_fused.backends.triton import columns, kernels
from sasgd_fused.backends.triton.variant import PLAIN, Variant

# NVIDIA's multiprocessors have 65536: so each holds four programs of 256 threads at once.
_REGISTERS = 64
_DTYPES = {
    **dict.fromkeys(("tensors", "addresses", "grads", "chosen", "stale_steps"), torch.int64),
    "tensor_of_chunk": torch.int32,
    "layers": torch.float64,
    "groups": torch.float64,
    "sums": torch.float64,
    "sum_squares": torch.float64,
    "row_norm_sq": torch.float64,
    "flags": torch.uint8,
    "loss_scale": torch.float32,
    "found_inf": torch.float32,
}
_FOR_CHUNKS = ("step_kernel", "norm_kernel", "gradient_kernel")
_FOR_TENSORS = ("finish_step_kernel", "finish_norm_kernel", "finish_gradient_kernel")
_OF_GRADIENTS = ("gradient_kernel", "finish_gradient_kernel")  # launched in the relative scale alone


def is_interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, as TRITON_INTERPRET said when they were imported."""
    return not isinstance(kernels.step_kernel, triton.JITFunction)


@cache
def compiled_kernels(device: torch.device, variant: Variant = PLAIN) -> dict[str, Any]:
    """Compiles and loads the kernels for a device, which has to be the current one.

    Returns:
        Name → what takes a grid of three numbers, and then the arguments.
    """
    names = [name for name in (*_FOR_CHUNKS, *_FOR_TENSORS) if variant.is_relative or name not in _OF_GRADIENTS]
    if is_interpreted():
        return {name: getattr(kernels, name) for name in names}
    return {name: _compile(getattr(kernels, name), variant, **_options_of(name)) for name in names}


def _options_of(name: str) -> dict[str, int]:
    if name in _FOR_TENSORS:
        return {"num_warps": 4}
    target = triton.runtime.driver.active.get_current_target()
    options = {"num_warps": columns.LANES.value // target.warp_size}
    if target.backend == "cuda" and target.arch < 100:  # where it costs no spills
        options["maxnreg"] = _REGISTERS
    return options


def _compile(kernel: Any, variant: Variant, **options: int) -> Any:
    for_rounding = torch.int64 if variant.is_stochastic else None
    of_gradients = torch.float64 if variant.is_relative else None
    known = {
        **_DTYPES,
        "all_chunks": 0,
        "params_of_masters": torch.int64 if variant.has_masters else None,
        "streams": for_rounding,
        "rounding_steps": for_rounding,
        **dict.fromkeys(("gradient_parts", "gradient_norm_sq", "gradient_sums"), of_gradients),
        "has_masters": variant.has_masters,
        "has_small_momentum": variant.has_small_momentum,
    }
    arguments = [known[name] for name in kernel.arg_names]
    # Contraction would give other bits than the other backends have. Random numbers are made of overflows.
    compiled = kernel.warmup(*arguments, grid=(1,), enable_fp_fusion=False, sanitize_overflow=False, **options)
    compiled._init_handles()  # loads it
    return compiled
