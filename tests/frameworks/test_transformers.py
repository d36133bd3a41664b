"""The Trainer of Hugging Face's transformers takes ScaleAmendedSGD as it takes torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import cpu_only, randn

pytestmark = [
    pytest.mark.nightly,
    cpu_only("the Trainer chooses the device itself"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]

OPTIONS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "scale": "relative"}


class Network(nn.Module):
    """Gives its loss, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.layers(inputs), labels)}


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Any]:
    """Makes a Trainer of two epochs of four steps, each of two batches, which writes a checkpoint after each."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    inputs = randn((32, 6), torch.Generator().manual_seed(1))
    data = [{"inputs": row, "labels": place % 3} for place, row in enumerate(inputs)]

    def make(folder: str, model: nn.Module, **options: Any) -> Any:
        arguments = transformers.TrainingArguments(
            str(tmp_path / folder),
            num_train_epochs=2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_grad_norm=0.5,
            bf16=True,
            use_cpu=True,
            save_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
        )
        return transformers.Trainer(model, arguments, train_dataset=data, **options)

    return make


def test_it_goes_on_from_a_checkpoint_to_the_bit(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    """With clipping, bfloat16, accumulation and the Trainer's own schedule."""
    models = []
    for checkpoint in (None, str(tmp_path / "run/checkpoint-4")):
        model = Network()
        optimizer = ScaleAmendedSGD(parameter_groups(model), **OPTIONS)
        make_trainer("run", model, optimizers=(optimizer, None)).train(resume_from_checkpoint=checkpoint)
        assert optimizer.param_groups[0]["lr"] == 0
        models.append(model)
    whole, resumed = (list(model.parameters()) for model in models)
    assert not any(map(torch.equal, whole, Network().parameters()))
    assert all(map(torch.equal, whole, resumed))


def test_it_makes_the_groups_itself_from_the_class(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer("run", Network(), optimizer_cls_and_kwargs=(ScaleAmendedSGD, OPTIONS))
    trainer.train()
    report = trainer.optimizer.optimizer.layer_report()
    assert [row.name for row in report[:2]] == ["parameter 0 of group 0", "parameter 1 of group 0"]
    assert [(row.rows, row.columns) for row in report[:2]] == [(8, 6), (3, 8)]
