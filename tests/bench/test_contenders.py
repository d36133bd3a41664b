"""Other people's optimizers get the hyperparameters of all, and are left out by name where they cannot run or err."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bench import contenders
from bench.cases import setup
from bench.contenders import LR, MOMENTUM, OTHERS, WEIGHT_DECAY, why_unavailable

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
    reason = why_unavailable(contender)
    assert reason is not None and reason.startswith("ModuleNotFoundError") and package in reason


def test_a_contender_with_wrong_steps_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("optimi")
    module.SGD = Wrong  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optimi", module)
    reason = why_unavailable("optimi SGD")
    assert reason is not None and "steps are wrong: momentum_buffer of equal elements is 0 to" in reason


def test_other_instructions_are_used_for_their_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_unavailable("native"):
        pytest.skip(reason)  # built without a compiler
    from sasgd_fused import _C

    used: list[str] = []
    monkeypatch.setattr(_C, "use_instruction_set", used.append)
    setup("64x64", "native, baseline")
    assert used == ["baseline", _C.instruction_sets()[0]]
    monkeypatch.setattr(_C, "instruction_sets", lambda: ["baseline"])
    assert why_unavailable("native, avx2") == "RuntimeError: this processor has no avx2"


def test_a_graph_is_captured_after_warm_up_steps_on_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_unavailable("native, graph") == "RuntimeError: only CUDA has graphs"
    log: list[str] = []

    class Parameter:
        device = torch.device("cuda")

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def on(what: object, stream: Stream | None = None) -> Iterator[None]:
        log.append("capture" if stream else "on side")
        yield
        log.append("back")

    monkeypatch.setitem(contenders.CONTENDERS, "native", lambda parameters: (None, lambda: log.append("step")))
    fakes = {"Stream": Stream, "CUDAGraph": Graph, "stream": on, "graph": on, "current_stream": lambda: Stream("main")}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    _, replay = contenders.CONTENDERS["native, graph"]([Parameter])  # type: ignore[list-item]
    replay()
    assert log == [
        *("side waits for main", "on side", "step", "step", "step", "back", "main waits for side"),
        *("capture", "step", "back", "replay"),
    ]


@pytest.mark.filterwarnings("ignore")  # of torch's compiler about what it uses itself
def test_the_compiled_step_is_compiled_once_and_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        compilations.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    made, plain = setup("64x64", "torch compiled"), setup("64x64", "torch for-loop")
    first = len(compilations)
    assert first > 0, "by the step that no figure is taken of"
    for _ in range(3):
        made.step()
    assert len(compilations) == first
    for _ in range(4):
        plain.step()
    for mine, theirs in zip(made.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(mine, theirs)
