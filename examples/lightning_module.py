"""Trains a Lightning module on generated images; writes a checkpoint after each epoch, and can go on from one."""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from shapes import KINDS, draw
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from sasgd_fused import ScaleAmendedSGD, parameter_groups

SIZE = 32  # pixels, high and wide
FOLDER = "runs/lightning"  # gets the checkpoints, and the logs as CSV


class Shapes(lightning.LightningModule):
    """Tells which shape an image has.

    Args:
        lr: the learning rate in the beginning.
        weight_decay: the optimizer's.
    """

    def __init__(self, lr: float = 0.3, weight_decay: float = 5e-4) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(KINDS) - 1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Returns the loss of a batch."""
        images, labels = batch
        loss = cross_entropy(self.network(images), labels)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Logs which part of a batch is told rightly."""
        images, labels = batch
        right = self.network(images).argmax(dim=1) == labels
        self.log("accuracy", right.float().mean())

    def on_train_epoch_end(self) -> None:
        """Logs what the optimizer does to each layer; prints it in the middle of the training, and a line each time."""
        report = self.optimizers().layer_report()
        self.log_dict(report.scalars())
        epoch, metrics = self.current_epoch + 1, self.trainer.callback_metrics
        print(f"epoch {epoch}: loss {metrics['loss']:.3f}, accuracy {metrics['accuracy']:.1%}", flush=True)
        if epoch == (self.trainer.max_epochs + 1) // 2:
            print(report)

    def configure_optimizers(self) -> dict[str, Any]:
        """Makes the optimizer, and a schedule that ends at zero."""
        optimizer = ScaleAmendedSGD(
            parameter_groups(self),
            lr=self.hparams["lr"],
            momentum=0.9,
            weight_decay=self.hparams["weight_decay"],
            scale="relative",
        )
        scheduler = CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_loader(count: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Draws images with one shape each.

    They come in the same order in every epoch, so that a run that goes on has the bits of one that was never stopped.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % (len(KINDS) - 1)
    images, _ = draw(labels[:, None] + 1, SIZE, generator)
    return DataLoader(TensorDataset(images, labels), 32)


def main() -> None:
    """Trains, and prints loss and accuracy after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training images")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    args = parser.parse_args()

    lightning.seed_everything(0)
    checkpoints = ModelCheckpoint(f"{FOLDER}/checkpoints", filename="{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        gradient_clip_val=1.0,
        logger=CSVLogger(FOLDER, name="logs"),
        callbacks=[checkpoints],
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    trainer.fit(Shapes(), make_loader(1024, seed=1), make_loader(256, seed=2), ckpt_path=args.resume)


if __name__ == "__main__":
    main()
