"""The table of backends, and which of them runs a plan."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch

from sasgd_fused.backends import extension, kernel
from sasgd_fused.backends.base import Backend
from sasgd_fused.backends.device_state import CarriedState
from sasgd_fused.backends.foreach import ForeachBackend
from sasgd_fused.backends.fused import FusedBackend
from sasgd_fused.backends.reference import ReferenceBackend
from sasgd_fused.backends.sharded import ShardedBackend
from sasgd_fused.backends.triton import availability
from sasgd_fused.memory import has_values, is_opaque
from sasgd_fused.plan import State, StepPlan
from sasgd_fused.shards import is_sharded


class Entry(NamedTuple):
    """A backend in the table.

    Attributes:
        why_not: returns why it cannot run parameters of these dtypes on a device, or None if it can.
        make: makes it for a plan that `why_not` has no objection to.
    """

    why_not: Callable[[torch.device, Collection[torch.dtype]], str | None]
    make: Callable[[StepPlan, State], Backend]


def _native(plan: StepPlan, state: State) -> Backend:
    make: kernel.MakeKernel = kernel.cpu_kernel if plan.device.type == "cpu" else kernel.CudaKernel
    return FusedBackend(plan, state, "native", make)


def _triton(plan: StepPlan, state: State) -> Backend:
    from sasgd_fused.backends.triton.kernel import TritonKernel  # here, because Triton may be absent

    def make(plan: StepPlan, carried: CarriedState) -> kernel.Kernel:
        return TritonKernel(plan.device, carried, **kernel.kernel_plan(plan))

    return FusedBackend(plan, state, "triton", make)


# The fastest first.
BACKENDS: dict[str, Entry] = {
    "native": Entry(kernel.why_not_native, _native),
    "triton": Entry(availability.why_not, _triton),
    "foreach": Entry(ForeachBackend.why_not, ForeachBackend),
    "reference": Entry(ReferenceBackend.why_not, ReferenceBackend),
}

# Those that `fused` is about.
FUSED = ("native", "triton")


def candidate_backends(backend: str | None, foreach: bool | None, fused: bool | None) -> tuple[str, ...]:
    """Lists the backends that the constructor's `backend`, `foreach` and `fused` allow, the fastest first.

    Raises:
        ValueError: the name is unknown, or the three contradict each other.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, want None or one of {', '.join(map(repr, BACKENDS))}")
    for name, value in (("foreach", foreach), ("fused", fused)):
        if isinstance(value, (str, bytes)):  # which are true, whatever they say
            raise TypeError(f"{name}: got {value!r}, want True, False or None")
    if foreach and fused:
        raise ValueError("foreach, fused: got True for both, want at most one of them")
    if foreach or fused:
        allowed = ["foreach"] if foreach else list(FUSED)
    else:
        refused = {"foreach": foreach is False, **dict.fromkeys(FUSED, fused is False)}
        allowed = [name for name in BACKENDS if not refused.get(name)]
    if backend is None:
        return tuple(allowed)
    if backend not in allowed:
        raise ValueError(
            f"backend: got {backend!r} together with foreach={foreach}, fused={fused}, "
            f"which {'mean' if foreach or fused else 'leave'} {' or '.join(map(repr, allowed))}"
        )
    return (backend,)


def make_backend(plan: StepPlan, state: State, candidates: tuple[str, ...]) -> Backend:
    """Makes the first candidate that can run the plan.

    Raises:
        RuntimeError: none can; the message says why.
    """
    if any(map(is_sharded, plan.params)):
        return ShardedBackend(plan, state, lambda plan, state: make_backend(plan, state, candidates))
    dtypes = {param.dtype for param in plan.params}
    opaque = next(filter(is_opaque, plan.params), None)
    is_fake = plan.device.type != "meta" and not all(map(has_values, plan.params))
    reasons: dict[str, str] = {}
    for name in candidates:
        reason = BACKENDS[name].why_not(plan.device, dtypes)
        if opaque is not None and name in FUSED:
            reason = f"it needs the memory of the parameters, which a {type(opaque).__name__} does not show"
        if name == "triton" and plan.device.type == "cpu" and len(candidates) > 1:
            reason = reason or "its interpreter is for tests and for debugging, and only taken where it is named"
        if reason is None:
            missing = extension.why_not_installed()
            if missing and reasons.get("native") == missing and name not in FUSED:
                # Python's default filter shows it once
                warnings.warn(f"{missing}; the slower {name!r} backend takes its place", stacklevel=4)
            return BACKENDS[name].make(plan, state)
        reasons[name] = reason
    if candidates == FUSED and (dtypes == {torch.float64} or is_fake):
        return ForeachBackend(plan, state)
    told = "; ".join(f"{name!r}: {reason}" for name, reason in reasons.items())
    raise RuntimeError(f"backend: cannot run on {plan.device} with these parameters: {told}")
