"""Types of the compiled extension; what it does stands in csrc/cpu/step.h and csrc/cuda/step.h."""

from array import array
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

from torch import Tensor

compiler: str

def all_equal(function: Callable[[Any], object], items: list[Any], values: list[Any]) -> bool: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def prefetch_distance() -> int: ...
def use_prefetch_distance(elements: int) -> None: ...

class CpuPlan:
    is_on_host: bool
    steps: int

    def __init__(
        self,
        *,
        tensors: list[tuple[int, int, int]],
        layers: list[tuple[int, bool, float, float, float, bool]],
        eps: float,
        shape_decay: bool,
        track_norms: bool,
        relative: bool = ...,
        precision: list[tuple[int, bool, bool, int]] = ...,
        threads: Callable[[], int],
    ) -> None: ...
    def attach(
        self,
        row_norm_sq: int,
        sum_squares: int,
        stale_steps: int,
        flags: int,
        rounding_steps: int,
        gradient_norm_sq: int,
        gradient_sums: int,
    ) -> None: ...
    def place(self, weights: array[int], momentum_buffers: array[int], params: array[int]) -> None: ...
    def measure(self, chosen: bytes | bytearray) -> None: ...
    def step(
        self,
        grads: array[int],
        grad_dtypes: array[int],
        values: array[float],
        lrs: Mapping[int, Tensor],
        grad_scale: SupportsFloat | None,
        found_inf: Tensor | None,
        measures_gradients: bool = ...,
    ) -> int: ...
    def stream(self) -> None: ...
    def memory(self) -> list[Tensor]: ...

# The rest is there where the extension was built with CUDA.

CUDA_VERSION: int
CUDA_ARCHITECTURES: list[int]

def cuda_devices() -> int: ...
def check_cuda_device(device: int) -> None: ...

class CudaPlan:
    table_bytes: int
    max_thread_blocks: int
    steps: int

    def __init__(
        self,
        *,
        device: int,
        tensors: list[tuple[int, int, int]],
        layers: list[tuple[int, bool, float, float, float, bool]],
        eps: float,
        shape_decay: bool,
        track_norms: bool,
        relative: bool = ...,
        precision: list[tuple[int, bool, bool, int]] = ...,
    ) -> None: ...
    def attach(
        self,
        tables: int,
        row_norm_sq: int,
        sum_squares: int,
        stale_steps: int,
        flags: int,
        rounding_steps: int,
        gradient_norm_sq: int,
        gradient_sums: int,
        stream: int,
    ) -> None: ...
    def place(self, weights: array[int], momentum_buffers: array[int], params: array[int], stream: int) -> None: ...
    def is_capturing(self, stream: int) -> bool: ...
    def measure(self, chosen: bytes | bytearray, stream: int) -> None: ...
    def step(
        self,
        grads: array[int],
        grad_dtypes: array[int],
        values: array[float],
        lr_addresses: array[int],
        grad_scale: int,
        found_inf: int,
        measures_gradients: bool,
        stream: int,
    ) -> None: ...
