"""Types of the compiled extension; what it does stands in csrc/cpu/step.h."""

from array import array

compiler: str

def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...

class CpuPlan:
    row_norm_sq: list[float]
    stale_steps: list[int]

    def __init__(
        self,
        *,
        tensors: list[tuple[int, int, int]],
        blocks: list[tuple[int, bool, float, float]],
        eps: float,
        output_factor: float,
        shape_decay: bool,
        track_norms: bool,
    ) -> None: ...
    def measure(self, weights: array[int], chosen_blocks: bytearray, threads: int) -> None: ...
    def step(
        self,
        weights: array[int],
        grads: array[int],
        momentum_buffers: array[int],
        grad_dtypes: array[int],
        first: bytes,
        values: array[float],
        loss_scale: float,
        threads: int,
    ) -> int: ...
    def set_row_norm_sq(self, block: int, value: float) -> None: ...
