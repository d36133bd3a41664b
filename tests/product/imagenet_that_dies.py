"""The ImageNet example, whose second process is killed in the second epoch, as for too much memory, if it is to die."""

from __future__ import annotations

import os
import signal

import imagenet
import torch
import torch.distributed as dist


class Trainer(imagenet.Trainer):
    """Each process writes its network."""

    def train(self, loader: imagenet.Loader, epoch: int) -> float:
        if epoch == 1 and "DIES" in os.environ:
            dist.barrier()  # the first process has written its checkpoint
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        loss = super().train(loader, epoch)
        assert loader.sampler.epoch == epoch  # type: ignore[attr-defined]
        return loss

    def validate(self, loader: imagenet.Loader) -> float:
        accuracy = super().validate(loader)
        torch.save(self.network.state_dict(), f"network{dist.get_rank()}.pt")
        return accuracy


def main() -> None:
    imagenet.Trainer = Trainer  # type: ignore[misc]
    imagenet.main()


if __name__ == "__main__":
    main()
