"""Whoever follows docs/new-backend.md has a backend that agrees with the reference."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from sasgd_fused import ScaleAmendedSGD
from sasgd_fused.backends import BACKENDS
from tests.helpers import DEVICE, LAYOUTS, Case, assert_same_run, cpu_only
from tests.product import test_parity as parity
from tests.product import test_release as release

pytestmark = [cpu_only("its backend computes there"), pytest.mark.usefixtures("numpy_backend")]
PAGE = Path(__file__).parents[2] / "docs/new-backend.md"


@pytest.fixture
def numpy_backend() -> Iterator[None]:
    """The page's code, run; the table is put back afterwards."""
    with patch.dict(BACKENDS):
        names: dict[str, Any] = {}
        for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
            exec(code, names)
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_options(dtype: torch.dtype) -> None:
    for decay, momentum, rule in itertools.product(parity.DECAYS, parity.MOMENTA, parity.RULES):
        options = {"lr": 0.01, **decay, **momentum, **rule}
        assert_same_run(Case(parity.network_for(rule), dtype, options=options), "numpy")


def test_layouts() -> None:
    for layout, grad_layout in itertools.product(LAYOUTS, LAYOUTS):
        options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
        assert_same_run(Case([(6, 4, 3, 3), (8, 5), (9,)], torch.float32, layout, grad_layout, options), "numpy")


def test_released_gradients_and_checkpoints() -> None:
    release.test_training_is_the_same_to_the_bit(release.RULES["freeze"], "numpy")


def test_what_it_cannot_run_goes_elsewhere() -> None:
    with pytest.raises(RuntimeError, match="'numpy': it takes float32 and float64"):
        ScaleAmendedSGD([torch.ones(2, 2, dtype=torch.bfloat16, device=DEVICE)], backend="numpy")  # type: ignore[arg-type]
