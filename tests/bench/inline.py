"""A `Child` that does everything in this process, where what tests have put in the place of something else is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.child import CallFailed, Child


class Inline(Child):
    def call(self, limit_s: float, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise CallFailed(f"{type(error).__name__}: {error}") from error
