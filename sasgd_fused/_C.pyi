"""Types of the compiled extension; what it does stands in csrc/cpu/step.h and csrc/cuda/step.h."""

from array import array

compiler: str

def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...

class CpuPlan:
    row_norm_sq: list[float]
    sum_squares: list[float]
    stale_steps: list[int]
    steps: int

    def __init__(
        self,
        *,
        tensors: list[tuple[int, int, int]],
        blocks: list[tuple[int, bool, float, float, float]],
        eps: float,
        shape_decay: bool,
        track_norms: bool,
        storage: list[tuple[int, bool, bool, int]] = ...,
    ) -> None: ...
    def measure(self, weights: array[int], chosen_blocks: bytearray, threads: int) -> None: ...
    def step(
        self,
        weights: array[int],
        grads: array[int],
        momentum_buffers: array[int],
        copies: array[int],
        grad_dtypes: array[int],
        first: bytes,
        rounding_steps: array[int],
        values: array[float],
        loss_scale: float,
        threads: int,
    ) -> int: ...
    def set_row_norm_sq(self, block: int, value: float) -> None: ...

# The rest is there where the extension was built with CUDA.

CUDA_VERSION: int
CUDA_ARCHITECTURES: list[int]

def cuda_devices() -> int: ...
def check_cuda_device(device: int) -> None: ...

class CudaPlan:
    table_bytes: int
    sum_squares_offset: int
    max_blocks: int
    steps: int

    def __init__(
        self,
        *,
        device: int,
        tensors: list[tuple[int, int, int]],
        blocks: list[tuple[int, bool, float, float, float]],
        eps: float,
        shape_decay: bool,
        track_norms: bool,
        storage: list[tuple[int, bool, bool, int]] = ...,
    ) -> None: ...
    def attach(
        self, tables: int, row_norm_sq: int, stale_steps: int, flags: int, rounding_steps: int, stream: int
    ) -> None: ...
    def place(self, weights: array[int], momentum_buffers: array[int], copies: array[int], stream: int) -> None: ...
    def is_capturing(self, stream: int) -> bool: ...
    def measure(self, chosen_blocks: bytearray, stream: int) -> None: ...
    def step(
        self,
        grads: array[int],
        grad_dtypes: array[int],
        values: array[float],
        lr_addresses: array[int],
        grad_scale: int,
        found_inf: int,
        stream: int,
    ) -> None: ...
