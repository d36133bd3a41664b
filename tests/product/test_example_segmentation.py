"""The example with two heads, on a smaller network than torchvision's; tests/frameworks/ runs it with that."""

from __future__ import annotations

import sys

import pytest
import segmentation
import shapes
import torch
from torch import Tensor, nn

from tests.helpers import cpu_only

pytestmark = cpu_only("the example is tested there")


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.classifier = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.aux_classifier = nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images).relu()
        return {"out": self.classifier(features), "aux": self.aux_classifier(features)}


def test_it_trains_and_prints_what_it_finds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(segmentation, "make_model", TwoHeads)
    monkeypatch.setattr(sys, "argv", ["segmentation.py", "--steps", "3"])
    segmentation.main()
    printed = capsys.readouterr().out
    assert "head: classifier.2.weight, 4 rows" in printed
    assert "head: aux_classifier.weight, 4 rows" in printed
    assert "\nstep 3: loss " in printed
    assert "\nbackbone.weight " in printed
    assert len(printed.rpartition("what is found\n")[2].splitlines()) == 16


def test_a_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(SystemExit, match=r"torchvision cannot be imported .*want the one that was built for torch "):
        segmentation.make_model()


def test_overlaps_are_intersections_over_unions() -> None:
    found, true = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 1, 2, 2]])
    assert segmentation.overlaps(found, true) == [1.0, 0.5, 0.5, 0.0]


def test_images_show_each_shape_that_was_asked_for() -> None:
    kinds = torch.tensor([[1], [2], [3]])
    images, pixels = shapes.draw(kinds, 16, torch.Generator().manual_seed(0))
    assert images.shape == (3, 3, 16, 16)
    assert [set(image.unique().tolist()) for image in pixels] == [{0, 1}, {0, 2}, {0, 3}]
