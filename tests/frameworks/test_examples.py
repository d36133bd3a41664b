"""The two examples that need a framework: a Lightning module, and torchvision's FCN with two heads."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.helpers import cpu_only

pytestmark = [
    pytest.mark.nightly,
    cpu_only("the examples are tested there"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example with the arguments that are given; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        import_module(name).main()
        return capsys.readouterr().out

    return run


def test_segmentation_finds_the_shapes(run: Run) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    printed = run("segmentation", "--steps", "75")
    assert printed.count("  head: ") == 2
    losses = [float(loss) for loss in re.findall(r"loss (\S+),", printed)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    *_, last = re.findall(r"background (\S+), square (\S+), disc (\S+), cross (\S+)", printed)
    assert min(map(float, last)) > 0.3


def test_the_lightning_module_learns_and_goes_on_to_the_bit(run: Run) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    whole = re.findall(r"^epoch.*", run("lightning_module", "--epochs", "3"), re.MULTILINE)
    assert len(whole) == 3
    assert float(whole[-1].rpartition(" ")[2].rstrip("%")) > 80
    checkpoints = Path("runs/lightning/checkpoints")
    resumed = run("lightning_module", "--epochs", "3", "--resume", f"{checkpoints}/epoch=0.ckpt")
    assert re.findall(r"^epoch.*", resumed, re.MULTILINE) == whole[1:]
    ends = [torch.load(checkpoints / f"epoch=2{which}.ckpt", weights_only=True) for which in ("", "-v1")]
    for name, weight in ends[0]["state_dict"].items():
        assert weight.equal(ends[1]["state_dict"][name]), name
    header = Path("runs/lightning/logs/version_0/metrics.csv").read_text(encoding="utf-8").partition("\n")[0]
    assert {"loss", "accuracy", "layer_scale/network.0.weight"} <= set(header.split(","))
