"""What frameworks leave in a process."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Where `make test-all` puts it, so that nothing else finds it.
TORCHVISION = Path(sys.prefix) / "torchvision"


@pytest.fixture(scope="session", autouse=True)
def torchvision_can_be_imported() -> Iterator[None]:
    """Its models are Python, but the import fails where its compiled operators were not built for this torch.

    So it is with the wheel of PyPI, which is for CUDA, and a torch for the CPU. Then the two names that the import
    looks up are given to torch; nothing here calls them.
    """
    sys.path.append(str(TORCHVISION))
    names = torch.library.Library("torchvision", "FRAGMENT")  # the names stay as long as this does
    if importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::nms does not exist" not in str(error):
                raise
            for name in ("nms", "qnms"):
                names.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            importlib.import_module("torchvision")
    yield


@pytest.fixture(autouse=True)
def accelerate_begins_anew() -> Iterator[None]:
    """All Accelerators of a process share a state, transformers' among them, which ends with the test."""
    yield
    if package := sys.modules.get("accelerate"):
        package.state.AcceleratorState._reset_state(reset_partial_state=True)
        package.state.GradientState._reset_state()
