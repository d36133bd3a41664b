"""Trains torchvision's FCN, which has two heads, to find shapes in generated images.

The main classifier reads the backbone's last features, the auxiliary one features from its middle. Both are outputs:
`parameter_groups` is told so, and neither counts as a hidden layer that leads to the other.
"""

from __future__ import annotations

import argparse
import sys

import torch
from shapes import KINDS, draw
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from sasgd_fused import ScaleAmendedSGD, parameter_groups

SIZE = 64  # pixels, high and wide
BATCH = 8
HEADS = ["classifier", "aux_classifier"]
# How much the auxiliary loss counts, as in the training script of torchvision's models.
AUXILIARY = 0.5


def main() -> None:
    """Trains, and prints losses, what is found, and what the optimizer does to each layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help=f"of {BATCH} images each")
    parser.add_argument("--lr", type=float, default=0.3, help="the learning rate in the beginning")
    args = parser.parse_args()

    torch.manual_seed(0)
    training, validation = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    model = make_model()
    groups = parameter_groups(model, heads=HEADS)
    print(groups.summary)
    optimizer = ScaleAmendedSGD(groups, lr=args.lr, momentum=0.9, weight_decay=5e-4, scale="relative")
    scheduler = CosineAnnealingLR(optimizer, args.steps)
    unseen = scenes(32, validation)
    for step in range(1, args.steps + 1):
        images, kinds = scenes(BATCH, training)
        outputs = model.train()(images)
        loss = cross_entropy(outputs["out"], kinds) + AUXILIARY * cross_entropy(outputs["aux"], kinds)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        if step % 25 == 0 or step == args.steps:
            found = predict(model, unseen[0])
            shares = zip(KINDS, overlaps(found, unseen[1]), strict=True)
            listed = ", ".join(f"{kind} {share:.2f}" for kind, share in shares)
            print(f"step {step}: loss {loss.item():.3f}, overlap (IoU) of {listed}", flush=True)
        if step == (args.steps + 1) // 2:  # in the end the learning rate is zero
            print(optimizer.layer_report()[: len(groups[-1]["params"])])
    print(side_by_side(unseen[1][0], found[0]))


def make_model() -> nn.Module:
    """Makes an FCN on the first half of a ResNet-18, small enough for a CPU.

    Its output is a dictionary with "out" and "aux", as that of ``torchvision.models.segmentation.fcn_resnet50`` with
    ``aux_loss=True``, and its heads have the same names.
    """
    try:
        from torchvision.models import resnet18
        from torchvision.models.feature_extraction import create_feature_extractor
        from torchvision.models.segmentation.fcn import FCN, FCNHead
    except (ImportError, RuntimeError) as error:  # RuntimeError: one that was built for another torch
        sys.exit(
            f"torchvision cannot be imported ({error}); want the one that was built for torch {torch.__version__}: "
            "the command on https://pytorch.org/get-started installs both"
        )
    backbone = create_feature_extractor(resnet18(), {"layer2": "out", "layer1": "aux"})
    model: nn.Module = FCN(backbone, FCNHead(128, len(KINDS)), FCNHead(64, len(KINDS)))
    return model


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws images with one shape of each kind, and the kind of each pixel."""
    kinds = torch.arange(1, len(KINDS)).expand(count, -1)
    return draw(kinds, SIZE, generator)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the kind that the main classifier finds for each pixel."""
    output: Tensor = model.eval()(images)["out"]
    return output.argmax(dim=1)


def overlaps(found: Tensor, true: Tensor) -> list[float]:
    """Returns for each kind the intersection over union: pixels found rightly, of all that are found or are there."""
    values = []
    for kind in range(len(KINDS)):
        both, either = (found == kind) & (true == kind), (found == kind) | (true == kind)
        values.append(float(both.sum() / either.sum().clamp(min=1)))
    return values


def side_by_side(true: Tensor, found: Tensor) -> str:
    """Returns two images as text, of every second row and column."""
    characters = (".", "S", "D", "X")
    lines = [f"{'what is there':{SIZE // 2}}   what is found"]
    for pair in zip(true[::4, ::2].tolist(), found[::4, ::2].tolist(), strict=True):
        lines.append("   ".join("".join(characters[kind] for kind in row) for row in pair))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
