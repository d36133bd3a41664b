"""`still`: a network in its own mode, without what makes two evaluations of it differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrizations import _SpectralNorm

# What draws at random, or writes buffers, in training mode alone. The names are those of stochastic depth in timm and
# torchvision.
_HELD = (_DropoutNd, _SpectralNorm, nn.RReLU)
_HELD_NAMES = ("DropPath", "StochasticDepth")


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Holds a network still: inside, the same input gives the same output, and the network keeps its state.

    The training flag of the network stays what it is; batch normalization that normalizes by the batch does so inside,
    too, but its running statistics do not follow. Modules of dropout and stochastic depth and the power iteration of
    spectral normalization are off. Two things are not held: random functions that a forward calls itself, such as
    ``F.dropout(x, p, self.training)``, draw anew each time; and attributes that it writes, other than buffers, stay.
    Afterwards everything is as it was, after an exception too: flags, buffers, also those that
    modules of other kinds have written, and the state of the random number generators of the CPU and of the devices
    that the network lies on.

    Args:
        module: the network, or a block of one.

    Example:
        >>> with still(model):
        ...     output = model(inputs)
    """
    with ExitStack() as restored:
        restored.enter_context(_generators_restored(module))
        restored.enter_context(_buffers_restored(module))
        for part in module.modules():
            for name, value in _settings(part):
                restored.callback(setattr, part, name, getattr(part, name))
                setattr(part, name, value)
        yield


def devices_of(module: nn.Module, *tensors: Tensor) -> set[torch.device]:
    """Returns where a module's tensors and others lie."""
    return {tensor.device for tensor in (*module.parameters(), *module.buffers(), *tensors)}


@contextmanager
def without_autocast(devices: Iterable[torch.device]) -> Iterator[None]:
    """Has operators on some devices take the dtypes of tensors as they are."""
    with ExitStack() as disabled:
        for kind in {device.type for device in devices}:
            if torch.amp.is_autocast_available(kind):
                disabled.enter_context(torch.autocast(kind, enabled=False))
        yield


def _settings(part: nn.Module) -> Iterator[tuple[str, Any]]:
    if isinstance(part, _NormBase):
        if part.training and part.track_running_stats:
            yield "track_running_stats", False
            if isinstance(part, nn.modules.instancenorm._InstanceNorm):  # has no other way to be told
                yield from (("running_mean", None), ("running_var", None))
    elif isinstance(part, _HELD) or type(part).__name__ in _HELD_NAMES:
        yield "training", False
    elif isinstance(part, (nn.MultiheadAttention, nn.RNNBase)):
        yield "dropout", 0.0


@contextmanager
def _buffers_restored(module: nn.Module) -> Iterator[None]:
    """Puts back buffers that were replaced, and values that were written; takes away what was registered."""
    before = [(part, dict(part._buffers), set(part._non_persistent_buffers_set)) for part in module.modules()]
    values = {buffer: (buffer._version, buffer.detach().clone()) for buffer in module.buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, (version, value) in values.items():
                if buffer._version != version:
                    buffer.copy_(value)
        for part, buffers, names in before:
            part._buffers.clear()
            part._buffers.update(buffers)
            part._non_persistent_buffers_set.intersection_update(names)


@contextmanager
def _generators_restored(module: nn.Module) -> Iterator[None]:
    devices = {device for device in devices_of(module) if device.type not in ("cpu", "meta")}
    with ExitStack() as restored:
        restored.enter_context(torch.random.fork_rng(devices=[]))
        for device in devices:
            restored.enter_context(torch.random.fork_rng(devices=[device], device_type=device.type))
        yield
