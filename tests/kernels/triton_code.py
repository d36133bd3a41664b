"""Has the Triton backend compile its kernels for a GPU that is not there, and tells where their code lies.

A program of its own, because the other tests have the kernels interpreted. It takes a target, and options in JSON that
replace the backend's own:

    python -m tests.kernels.triton_code sm_90 '{"maxnreg": 24}'
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from sasgd_fused.backends.device_state import CarriedState
from sasgd_fused.backends.triton import columns, kernel, kernels
from sasgd_fused.backends.triton.variant import PLAIN, Variant
from sasgd_fused.hyperparameters import GroupValues

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = range(3)  # their codes
CHUNK = columns.CHUNK.value
MOMENTUM = GroupValues(0.1, 0.9, 0.0, 5e-4, False, False)


class Driver:
    """What Triton asks of a GPU's driver. It notes launches, so that no address has to be one."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target
        self.launches: list[tuple[str, tuple[Any, ...]]] = []  # names and arguments
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 64 * 1024}  # as much as all have

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[None, str, int, int, int]:
        return None, name, 0, 0, 1024  # its function is its name

    def launcher_cls(self, source: object, metadata: object) -> Any:
        return self._launch

    def _launch(self, x: int, y: int, z: int, stream: int, function: str, *args: Any) -> None:
        _packed, _metadata, _enter, _exit, *arguments = args
        self.launches.append((function, tuple(arguments)))


def stored(code: int, variant: Variant) -> tuple[int, bool, bool, int]:
    """How a tensor is stored whose parameter has this dtype."""
    is_float32 = variant.has_masters or code == 0
    is_small = variant.has_small_momentum and is_float32
    is_stochastic = variant.is_stochastic and (is_small or (code == 1 and not is_float32))
    return code if variant.has_masters else 0, is_small, is_stochastic, 2**64 - 1


def use(
    numels: Sequence[int] = (3 * CHUNK,),
    dtypes: Sequence[int] = (0,),
    *,
    layers: Sequence[int] = (0,),
    values: GroupValues = MOMENTUM,
    lrs: Mapping[int, Tensor] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    wide: bool = False,
    address: int = 16,
    shape_decay: bool = False,
    track_norms: bool = True,
    variant: Variant = PLAIN,
) -> None:
    """All passes and a step of a model; the dtypes, which are the parameters', take turns."""
    is_plain = variant._replace(is_relative=False) == PLAIN
    codes = [dtypes[t % len(dtypes)] for t in range(len(numels))]
    plan = kernel.TritonKernel(
        torch.device("cpu"),
        CarriedState(
            torch.zeros(len(layers), dtype=torch.float64),
            torch.zeros(len(layers), dtype=torch.float64),
            torch.zeros(len(layers), dtype=torch.int64),
            torch.zeros(len(numels), dtype=torch.uint8),
            torch.zeros(len(numels), dtype=torch.int64),
            torch.zeros(len(numels), dtype=torch.float64),
            torch.zeros(len(numels), dtype=torch.float64),
        ),
        tensors=[(n, 0, 0 if variant.has_masters else code) for n, code in zip(numels, codes, strict=True)],
        precision=[] if is_plain else [stored(code, variant) for code in codes],
        layers=[(tensor, True, 4.0, 2.0, 1.0, False) for tensor in layers],
        eps=1e-3,
        shape_decay=shape_decay,
        track_norms=track_norms,
        relative=variant.is_relative,
    )
    addresses = array("Q", [address] * len(numels))
    nowhere = array("Q", bytes(8 * len(numels)))
    plan.place(addresses, addresses if values.momentum else nowhere, addresses if variant.has_masters else nowhere)
    plan.measure(bytearray(b"\1" * len(layers)))
    grad_dtypes = array("Q", [0] * len(numels) if wide else codes)
    numbers = array("d", values), lrs or {}, grad_scale, found_inf
    plan.step(addresses, grad_dtypes, *numbers, measures_gradients=variant.is_relative)


UNALIGNED = torch.ones(4)[1]
MANY = [1 + 31 * t for t in range(400)]
USES: dict[str, dict[str, Any]] = {
    "one layer": {},
    "one element": {"numels": [1], "layers": []},
    "one chunk": {"numels": [CHUNK]},
    "a multiple of 16 chunks": {"numels": [16 * CHUNK]},
    "many tensors of all dtypes": {"numels": MANY, "dtypes": DTYPES, "layers": range(0, len(MANY), 2)},
    "16 tensors": {"numels": MANY[:16], "dtypes": DTYPES, "layers": range(16)},
    "no layers": {"numels": MANY, "layers": []},
    "empty tensors": {"numels": [0, 5, 0], "layers": [0, 1]},
    "gradients in float32": {"numels": MANY, "dtypes": [1, 2], "wide": True},
    "misaligned memory": {"numels": MANY, "dtypes": DTYPES, "address": 18},
    "SGD": {"values": GroupValues(1.0, 0.0, 0.0, 0.0, False, False)},
    "all of SGD": {"values": GroupValues(1e-3, 1.0, 0.5, 1.0, True, True)},
    "nesterov": {"values": GroupValues(0.0, 0.5, 0.0, 0.0, True, False)},
    "maximize": {"values": GroupValues(0.1, 0.5, 1.0, 0.0, False, True)},
    "lr on the device": {"lrs": {0: torch.ones(1)}},
    "lr in a view": {"lrs": {0: UNALIGNED}},
    "GradScaler": {"grad_scale": torch.ones(1), "found_inf": torch.zeros(())},
    "GradScaler in views": {"grad_scale": UNALIGNED, "found_inf": UNALIGNED},
    "an overflow alone": {"found_inf": UNALIGNED},
    "frozen norms": {"track_norms": False},
    "decay by shape": {"shape_decay": True},
}


def specialization(name: str, arguments: Sequence[Any]) -> str:
    """What Triton would compile a kernel for if it were asked to run it with these arguments: types and alignments."""
    *_, binder = getattr(kernels, name).device_caches[0]
    return str(binder(*arguments)[1])


def compiled(name: str) -> dict[str, Any]:
    """What a kernel was compiled for and, of the first variant, its threads, shared memory and files by their kind."""
    variants, *_ = getattr(kernels, name).device_caches[0]
    kernel = next(iter(variants.values()))
    files = {file.rpartition(".")[2]: str(path) for file, path in kernel.metadata_group.items()}
    threads = kernel.metadata.num_warps * kernel.metadata.target.warp_size
    return {"variants": list(variants), "threads": threads, "shared": kernel.metadata.shared, "files": files}


def begin(target: GPUTarget) -> Driver:
    """Has Triton compile for a target."""
    driver = Driver(target)
    triton.runtime.driver.set_active(driver)
    return driver


def told_of(uses: Mapping[str, Mapping[str, Any]], driver: Driver) -> dict[str, Any]:
    """What launches are to be compiled for in each case, and the kernels."""
    launches = {}
    for case, arguments in uses.items():
        use(**arguments)
        launches[case] = {name: specialization(name, arguments) for name, arguments in driver.launches}
        driver.launches.clear()
    names = next(iter(launches.values()))
    return {"launches": launches, "kernels": {name: compiled(name) for name in names}}


def main() -> None:
    """Prints a JSON object."""
    target, options = TARGETS[sys.argv[1]], json.loads(sys.argv[2])
    driver = begin(target)
    warmup = triton.JITFunction.warmup
    triton.JITFunction.warmup = lambda *args, **kwargs: warmup(*args, **{**kwargs, **options})
    print(json.dumps(told_of(USES, driver)))


if __name__ == "__main__":
    main()
