"""Other people's optimizers get the hyperparameters of all, and are left out by name where they cannot run or err."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bench import contenders
from bench.cases import setup
from bench.contenders import LR, MOMENTUM, OTHERS, WEIGHT_DECAY, why_unavailable
from bench.rows import FIELD, ROWS, groups_of, measurable
from bench.table import by_name, missing

pytestmark = pytest.mark.filterwarnings("ignore:Parameter `foreach` is deprecated:DeprecationWarning")  # optimi
PACKAGES = {"optimi": "SGD", "pytorch_optimizer": "LARS"}


class StandIn(torch.optim.SGD):
    """Takes what theirs takes."""

    def __init__(self, params: Any, *, lr: float, momentum: float, weight_decay: float, **others: bool) -> None:
        super().__init__(params, lr, momentum, weight_decay=weight_decay)
        self.others = others


class Wrong(StandIn):
    """Forgets the last element, as torch's fused step has forgotten all but the last."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        super().step()
        for param in self.param_groups[0]["params"]:
            self.state[param]["momentum_buffer"].view(-1)[-1] = 0


@pytest.mark.parametrize(("package", "name"), PACKAGES.items())
def test_hyperparameters_are_those_of_all(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(package)
    setattr(module, name, StandIn)
    monkeypatch.setitem(sys.modules, package, module)
    contender = f"{package} {name}"
    assert why_unavailable(contender) is None
    made, torchs = setup("64x64", contender), setup("64x64", "torch for-loop")
    group = made.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (LR, MOMENTUM, WEIGHT_DECAY)
    assert all(map(torch.equal, made.parameters, torchs.parameters)), "the same data"


def test_timms_optimizers_are_imported_without_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    optim = tmp_path / "timm" / "optim"
    optim.mkdir(parents=True)
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (optim / "helper.py").write_text("from tests.bench.test_contenders import StandIn as Lars")
    (optim / "lars.py").write_text("from .helper import Lars")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "_optimizers_of_timm")]:
        monkeypatch.delitem(sys.modules, name)
    try:
        assert why_unavailable("timm LARS") is None
        assert type(setup("64x64", "timm LARS").optimizer).__name__ == "StandIn"
    finally:
        for name in [name for name in sys.modules if name.startswith("_optimizers_of_timm")]:
            del sys.modules[name]


@pytest.mark.parametrize("contender", OTHERS)
def test_what_is_not_installed_is_left_out_by_name(contender: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = contender.split()[0]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "_optimizers_of_timm", raising=False)
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    groups = groups_of(["64x65536"])
    absent = missing(groups)
    reason = by_name(absent)[contender]
    assert reason.startswith("ModuleNotFoundError") and package in reason
    assert f"{contender} in bfloat16" not in by_name(absent), "said once"
    assert contender not in {row.contender for group in measurable(groups, absent) for row in group}


def test_a_contender_with_wrong_steps_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("optimi")
    module.SGD = Wrong  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optimi", module)
    reason = why_unavailable("optimi SGD")
    assert reason is not None and "steps are wrong: momentum_buffer of equal elements is 0 to" in reason


def test_everything_in_a_group_shares_case_dtype_and_against() -> None:
    groups = groups_of([row.case for row in ROWS] + ["64x65536", "1x1048576"])
    absent = {("torch fused", "bfloat16"), ("native", "float32")}
    left = list(measurable(groups, absent))
    for group in left:
        assert len({(row.case, row.dtype, row.against) for row in group}) == 1
        assert len({row.contender for row in group}) == len(group)
        assert not {(name, row.dtype) for row in group for name in (row.contender, row.against)} & absent
    instead = {row.against for group in left for row in group if row.dtype == "bfloat16"}
    assert instead == {"torch foreach"}
    full = next(group for group in left if group[0].dtype == "float16")
    assert [row.contender for row in full] == list(FIELD)
