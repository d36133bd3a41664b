"""Trains a ResNet with scale-amended SGD on a folder of images, in one process or, by torchrun, in one for each GPU."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.distributed as dist
from imagenet_data import EpochSampler, list_classes, make_loaders
from resnet import ARCHITECTURES
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from sasgd_fused import ScaleAmendedSGD, parameter_groups

Loader = DataLoader[tuple[Tensor, int]]

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# Of the three colours, for pixels from 0 to 255
MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)

# What may differ in a run that goes on; all else must be as it was.
FREE_TO_CHANGE = ("folder", "workers", "checkpoint", "resume", "report")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, help="holds train/ and val/, and each of them a folder of images for each class")
    add("--arch", choices=ARCHITECTURES, default="resnet50", help="the network")
    add("--image-size", type=int, default=224, help="pixels, wide and high")
    add("--epochs", type=int, default=90, help="passes over the training images")
    add("--warm-up", type=float, default=5, help="epochs in which the learning rate grows")
    add("--batch-size", type=int, default=64, help="images in a batch of one process")
    add("--optimizer", choices=["sasgd", "sgd"], default="sasgd", help="scale-amended SGD or torch.optim.SGD")
    add("--lr", type=float, default=0.1, help="learning rate that SGD would have for 256 images a step")
    add("--weight-decay", type=float, default=1e-4, help="weight decay, the same for both optimizers")
    add("--amp", choices=AMP, default="off", help="mixed precision; fp16 needs CUDA")
    add("--seed", type=int, default=0, help="of weights, order and cutouts")
    add("--workers", type=int, default=8, help="processes that read images, for each that trains")
    add("--checkpoint", type=Path, default=Path("checkpoint.pt"), help="written after each epoch")
    add("--resume", type=Path, help="a checkpoint to go on from")
    add("--report", action="store_true", help="after each epoch, what the optimizer does to each layer")
    args = parser.parse_args()
    if args.amp == "fp16" and not torch.cuda.is_available():
        parser.error("argument --amp: got fp16 without CUDA, want bf16 or off")
    if args.report and args.optimizer == "sgd":
        parser.error("argument --report: torch.optim.SGD has no report, want --optimizer sasgd")
    if not args.checkpoint.parent.is_dir():
        parser.error(f"argument --checkpoint: {args.checkpoint.parent} is not there, want a folder to write to")
    return args


@record  # so that torchrun shows the error of the process that failed first
def main() -> None:
    """Trains, validates and writes a checkpoint, epoch after epoch."""
    args = parse_arguments()
    device = join_processes()
    rank, processes = dist.get_rank(), dist.get_world_size()
    training, validation = make_loaders(
        args.folder,
        image_size=args.image_size,
        batch_size=args.batch_size,
        workers=args.workers,
        seed=args.seed,
        rank=rank,
        processes=processes,
    )
    images_a_step = args.batch_size * processes

    torch.backends.cudnn.benchmark = True
    torch.manual_seed(args.seed)
    network = ARCHITECTURES[args.arch](len(list_classes(args.folder / "train")))
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # More images in a step allow a larger one, in proportion (Goyal et al. 2017).
    optimizer = make_optimizer(args.optimizer, network, args.lr * images_a_step / 256, args.weight_decay)
    schedule = make_schedule(optimizer, args.warm_up * len(training), args.epochs * len(training))
    trainer = Trainer(network, optimizer, schedule, device, args.amp)

    settings = {key: value for key, value in vars(args).items() if key not in FREE_TO_CHANGE}
    settings["processes"] = processes
    first = load_checkpoint(args.resume, trainer.parts(), settings) if args.resume else 0
    for epoch in range(first, args.epochs):
        # For layers that draw, such as dropout: what they draw follows from the epoch, and need not be in a checkpoint.
        torch.manual_seed(args.seed + epoch * processes + rank)
        start = time.perf_counter()
        loss = trainer.train(training, epoch)
        speed = len(training) * images_a_step / (time.perf_counter() - start)
        if not math.isfinite(loss):  # the last checkpoint is still a good one
            raise FloatingPointError(f"epoch {epoch + 1}: the training loss is {loss}; try a smaller --lr")
        accuracy = trainer.validate(validation)
        if rank == 0:
            save_checkpoint(args.checkpoint, trainer.parts(), settings, epoch + 1)
            print(f"epoch {epoch + 1}: loss {loss:.4f}, top-1 {accuracy:.2%}, {speed:.0f} images/s", flush=True)
            if isinstance(optimizer, ScaleAmendedSGD) and args.report:
                print(optimizer.layer_report(), flush=True)

    dist.barrier()  # who leaves early breaks the connections of the others
    dist.destroy_process_group()


def join_processes() -> torch.device:
    """Joins the processes that torchrun started, or makes a group of one, so that all else need not ask."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if dist.is_torchelastic_launched():
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return device


def make_optimizer(name: str, network: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Makes an optimizer from the learning rate that is good for SGD."""
    if name == "sgd":
        return SGD(network.parameters(), lr, momentum=0.9, weight_decay=weight_decay)
    plain, amended = parameter_groups(network)
    # The scale of an amended layer has a factor rows / outputs; this takes it out again for the mean layer. For
    # ResNet-50 and 1000 classes it is 2.0. Biases and norms take the plain step with SGD's learning rate.
    *hidden, outputs = amended["rows"]
    amended["lr"] = lr * outputs / mean(hidden)
    return ScaleAmendedSGD(
        [plain, amended], lr, momentum=0.9, weight_decay=weight_decay, norms="freeze", head="plain", decay="shape"
    )


def make_schedule(optimizer: Optimizer, warm_up: float, steps: int) -> LambdaLR:
    """The learning rate grows linearly, then falls to zero along a cosine, a little with every step.

    Large learning rates need the warm-up (Goyal et al. 2017).
    """

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2

    return LambdaLR(optimizer, factor)


class Trainer:
    """Trains and validates a network, of which every process has a copy.

    Args:
        network: the network, on its device.
        optimizer: of its parameters.
        schedule: sets the learning rate after every step.
        device: of this process.
        amp: key in `AMP`.
    """

    def __init__(
        self, network: nn.Module, optimizer: Optimizer, schedule: LambdaLR, device: torch.device, amp: str
    ) -> None:
        self.network, self.optimizer, self.schedule, self.device = network, optimizer, schedule, device
        self.parallel = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
        self.scaler = GradScaler(device.type, enabled=amp == "fp16")
        self.autocast = torch.autocast(device.type, AMP[amp], enabled=amp != "off")
        self.mean, self.deviation = torch.tensor(MEAN, device=device), torch.tensor(DEVIATION, device=device)

    def parts(self) -> dict[str, Any]:
        """What a checkpoint is made of."""
        return {"network": self.network, "optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}

    def train(self, loader: Loader, epoch: int) -> float:
        """Trains for an epoch; returns the mean loss."""
        assert isinstance(loader.sampler, EpochSampler)
        loader.sampler.set_epoch(epoch)
        self.network.train()
        total = torch.zeros((), device=self.device)
        for images, labels in self.batches(loader):
            with self.autocast:
                loss = cross_entropy(self.parallel(images), labels)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            total += loss.detach()
        dist.all_reduce(total)
        return total.item() / (len(loader) * dist.get_world_size())

    @torch.no_grad()
    def validate(self, loader: Loader) -> float:
        """Returns the share of images that the network puts into the right class."""
        for buffer in self.network.buffers():  # each process has seen other images: the statistics of the first count
            dist.broadcast(buffer, 0)
        self.network.eval()
        counts = torch.zeros(2, device=self.device)
        for images, labels in self.batches(loader):
            with self.autocast:  # the network itself: the processes' numbers of batches may differ
                classes = self.network(images).argmax(dim=1)
            counts[0] += (classes == labels).sum()
            counts[1] += len(labels)
        dist.all_reduce(counts)
        correct, of = counts.tolist()
        return float(correct / of)

    def batches(self, loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields normalized images in channels_last, which is how bytes of (images, height, width, 3) lie already."""
        for pixels, labels in loader:
            images = (pixels.to(self.device, non_blocking=True) - self.mean) / self.deviation
            yield images.permute(0, 3, 1, 2), labels.to(self.device, non_blocking=True)


def save_checkpoint(path: Path, parts: Mapping[str, Any], settings: Mapping[str, Any], epochs: int) -> None:
    """Writes a checkpoint beside the one before and then puts it in its place, so that there always is a whole one."""
    state = {name: part.state_dict() for name, part in parts.items()}
    temporary = path.with_name(path.name + ".new")
    torch.save({**state, "settings": dict(settings), "epochs": epochs}, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path, parts: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """Loads a checkpoint; returns how many epochs it has behind it.

    Raises:
        ValueError: it is of a run with other settings, which this one would not go on from.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    for key, now in settings.items():
        before = checkpoint["settings"][key]
        if before != now:
            raise ValueError(f"{path}: {key} was {before} and is {now} now, want the same in a run that goes on")
    for name, part in parts.items():
        part.load_state_dict(checkpoint[name])
    epochs: int = checkpoint["epochs"]
    return epochs


if __name__ == "__main__":
    main()
