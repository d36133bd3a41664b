"""Triton's interpreter as the tests use it: it rounds as devices do, and does not prepare itself anew at every call.

Importing this module, before the kernels are imported, has them run in the interpreter.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

from typing import Any

import numpy
import triton
import triton.language as tl
from triton.runtime import interpreter


def _to_bfloat16(values: Any) -> Any:
    """float32 to the bits of bfloat16, to nearest, ties to even; the interpreter cuts off what is too much."""
    bits = values.view(numpy.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return numpy.where(numpy.isnan(values), 0x7FFF, rounded).astype(numpy.uint16)


_convert_float = interpreter._convert_float


def _convert(values: Any, source: tl.dtype, target: tl.dtype, rounding: Any) -> Any:
    if (source, target) == (tl.float32, tl.bfloat16):
        return _to_bfloat16(values)
    if (source, target) == (tl.bfloat16, tl.float32):
        return values.astype(numpy.uint32) << 16
    return _convert_float(values, source, target, rounding)


_patch_lang = interpreter._patch_lang


def _patch_for_launch(kernel: Any) -> Any:
    """Puts the interpreted language in the place of the compiled one, also for Triton's own functions."""
    scope = _patch_lang(kernel)
    scope._changes += _patch_lang(tl.zeros.fn)._changes
    return scope


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A call within a kernel, whose launch has done that already; Triton does it again."""
    return self.rewrite()(*args, **kwargs)


_launch = interpreter.GridExecutor.__call__


def _launch_quietly(self: Any, *args: Any, **kwargs: Any) -> None:
    """Devices do not warn of an overflow either."""
    with numpy.errstate(over="ignore", invalid="ignore"):
        _launch(self, *args, **kwargs)


# Torch 2.6 brings a Triton that is too old for the backend: nothing is to be interpreted then.
if hasattr(triton, "knobs"):
    interpreter._convert_float = _convert
    interpreter._patch_lang = _patch_for_launch
    interpreter.InterpretedFunction.__call__ = _call
    interpreter.GridExecutor.__call__ = _launch_quietly
    assert triton.knobs.runtime.interpret
