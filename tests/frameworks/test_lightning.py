"""Lightning's Trainer takes ScaleAmendedSGD as it takes torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, randn

pytestmark = [
    pytest.mark.nightly,
    # Lightning's own, from torch.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]

MakeOptimizer = Callable[[nn.Module], Optimizer]


def recommended(model: nn.Module) -> Optimizer:
    options = {"momentum": 0.9, "weight_decay": 0.01, "norms": "freeze", "head": "plain", "decay": "shape"}
    return ScaleAmendedSGD(parameter_groups(model), lr=0.05, **options)


def unscaled(model: nn.Module) -> Optimizer:
    return ScaleAmendedSGD([{"params": model.named_parameters(), "amend": False}], lr=0.05, momentum=0.9)


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


@pytest.fixture(scope="module")
def lightning() -> Any:
    return pytest.importorskip("lightning", reason="lightning is not installed")


@pytest.fixture
def make_module(lightning: Any) -> Callable[[MakeOptimizer], Any]:
    """Makes a LightningModule that trains by automatic optimization, with a scheduler and logs."""

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, make_optimizer: MakeOptimizer) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.make_optimizer = make_optimizer
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten())
            self.head = nn.Linear(32, 5)
            self.losses: list[float] = []

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])
            self.losses.append(loss.item())
            return loss

        def on_train_epoch_end(self) -> None:
            if isinstance(self.optimizers().optimizer, ScaleAmendedSGD):
                self.log_dict(self.optimizers().layer_report().scalars())

        def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
            optimizer = self.make_optimizer(self)
            return [optimizer], [StepLR(optimizer, 1, 0.5)]

    return Module


@pytest.fixture
def fit(lightning: Any, tmp_path: Path) -> Callable[..., Any]:
    """Trains a module for some epochs of two batches."""
    data = TensorDataset(randn((8, 3, 4, 4), torch.Generator().manual_seed(1)).cpu(), torch.arange(8) % 5)

    def fit(module: Any, epochs: int, resume: Path | None = None, **options: Any) -> Any:
        trainer = lightning.Trainer(
            accelerator=DEVICE.type,
            devices=1,
            max_epochs=epochs,
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(module, DataLoader(data, 4), ckpt_path=resume)
        return trainer

    return fit


def test_it_trains_logs_and_goes_on_from_a_checkpoint(make_module: Any, fit: Any, tmp_path: Path) -> None:
    whole, first, second = (make_module(recommended) for _ in range(3))
    trainer = fit(whole, 4)
    assert whole.losses[-1] < whole.losses[0]
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 / 2**4)
    assert trainer.callback_metrics["layer_scale/body.0.weight"] == pytest.approx(
        trainer.optimizers[0].layer_report()[0].layer_scale
    )
    fit(first, 2).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, 4, tmp_path / "half.ckpt")
    assert first.losses + second.losses == whole.losses
    for name, param in whole.named_parameters():
        assert param.equal(second.get_parameter(name)), name


@pytest.fixture(params=["32-true", "bf16-mixed", "16-mixed"])
def precision(lightning: Any, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The Trainer's options for it. On a CPU Lightning takes bfloat16 for float16 unless it gets the plugin itself."""
    if request.param != "16-mixed":
        return {"precision": request.param}
    return {"plugins": lightning.pytorch.plugins.MixedPrecision("16-mixed", DEVICE.type)}


def test_it_trains_as_sgd_with_clipping(make_module: Any, fit: Any, precision: dict[str, Any]) -> None:
    ours, torchs = make_module(unscaled), make_module(sgd)
    for module in (ours, torchs):
        fit(module, 3, gradient_clip_val=1.0, **precision)
    assert ours.losses == pytest.approx(torchs.losses, rel=1e-3)
    assert ours.losses[-1] < ours.losses[0]


def test_scaled_layers_train_with_clipping(make_module: Any, fit: Any, precision: dict[str, Any]) -> None:
    module = make_module(recommended)
    fit(module, 4, gradient_clip_val=1.0, **precision)
    assert module.losses[-1] < module.losses[0]


def test_clipping_in_mixed_precision_is_refused_where_the_step_unscales(
    lightning: Any, make_module: Any, fit: Any
) -> None:
    module = make_module(lambda model: ScaleAmendedSGD(parameter_groups(model), lr=0.05, fused=True))
    plugin = lightning.pytorch.plugins.MixedPrecision("16-mixed", DEVICE.type)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(module, 1, gradient_clip_val=1.0, plugins=plugin)


def test_finetuning_unfreezes_a_body(lightning: Any, make_module: Any, fit: Any) -> None:
    class Unfreeze(lightning.pytorch.callbacks.BaseFinetuning):  # type: ignore[misc]
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.body)

        def finetune_function(self, module: Any, epoch: int, optimizer: Optimizer) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(module.body, optimizer, lr=0.01)

    module = make_module(lambda model: ScaleAmendedSGD(parameter_groups(model.head), lr=0.05))
    before = module.body[0].weight.detach().clone()
    trainer = fit(module, 2, callbacks=[Unfreeze()])
    assert not module.body[0].weight.equal(before)
    assert [row.rows for row in trainer.optimizers[0].layer_report()] == [8, 5]
