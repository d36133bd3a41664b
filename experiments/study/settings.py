"""The settings of the study: what is trained on what, and how; each asks one question."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from experiments.study.networks import Init

Schedule = Literal["cosine", "constant", "step"]


@dataclass(frozen=True)
class Setting:
    """All of a run but the method and the seed.

    Attributes:
        name: its key in `SETTINGS`.
        task: as `load_task` has it.
        network: key in `NETWORKS`.
        width: of the network, as `make_network` has it.
        depth: likewise.
        classes: labels of the task.
        batch_size: images in a batch.
        epochs: passes over the training images.
        schedule: of the learning rate: "cosine", to zero; "constant"; "step", to a tenth after half of the steps and
            again after three quarters.
        init: of the hidden layers, as `make_network` has it.
        varies: the question that it belongs to, such as "width".
    """

    name: str
    task: str
    network: str
    width: int
    depth: int
    classes: int = 10
    batch_size: int = 64
    epochs: int = 12
    schedule: Schedule = "cosine"
    init: Init = "plain"
    varies: str = "network"


def _varied(base: Setting, varies: str, **variations: dict[str, Any]) -> list[Setting]:
    """Returns a setting for each variation, named after it."""
    return [
        replace(base, name=f"{base.name}-{name.replace('_', '-')}", varies=varies, **changes)
        for name, changes in variations.items()
    ]


_MLP = Setting("mlp", "teacher", "mlp", width=64, depth=4, batch_size=128, epochs=20)
_VGG = Setting("vgg", "noisy-digits", "vgg", width=8, depth=6, batch_size=50, epochs=20)
_MNIST = Setting("mnist", "mnist14", "affine-vgg", width=8, depth=6, epochs=8)

_ALL = [
    _MLP,
    *_varied(_MLP, "width", width_16={"width": 16}, width_256={"width": 256}),
    *_varied(_MLP, "depth", depth_2={"depth": 2}, depth_8={"depth": 8}, depth_18={"depth": 18}),
    *_varied(_MLP, "shape", narrowing={"network": "narrowing-mlp"}, widening={"network": "widening-mlp"}),
    *_varied(_MLP, "classes", classes_3={"classes": 3}, classes_40={"classes": 40}),
    *_varied(_MLP, "batch", batch_32={"batch_size": 32}, batch_512={"batch_size": 512}),
    *_varied(_MLP, "init", times_10={"init": "times 10"}, times_0_1={"init": "times 0.1"}, random={"init": "random"}),
    *_varied(_MLP, "length", short={"epochs": 10}, long={"epochs": 80}),
    *_varied(_MLP, "schedule", constant={"schedule": "constant"}, step={"schedule": "step"}),
    _VGG,
    *_varied(_VGG, "width", width_4={"width": 4}, width_16={"width": 16}),
    *_varied(_VGG, "depth", depth_3={"depth": 3}, depth_12={"depth": 12}),
    *_varied(_VGG, "batch", batch_256={"batch_size": 256}),
    *_varied(_VGG, "init", times_10={"init": "times 10"}, random={"init": "random"}),
    *_varied(
        _MNIST,
        "network",
        vgg={},
        resnet={"network": "affine-resnet", "depth": 3},
        depthwise={"network": "affine-depthwise", "width": 16, "depth": 4},
        layernorm={"network": "layernorm-mlp", "width": 64, "depth": 4},
        unnormalized={"network": "unnormalized-mlp", "width": 64, "depth": 3},
        transformer={"network": "transformer", "width": 32, "depth": 2},
    ),
    *_varied(
        _MNIST,
        "width",
        layernorm_256={"network": "layernorm-mlp", "width": 256, "depth": 4},
        unnormalized_256={"network": "unnormalized-mlp", "width": 256, "depth": 3},
    ),
    *_varied(
        _MNIST,
        "depth",
        resnet_9={"network": "affine-resnet", "depth": 9, "epochs": 7},
        mlp_14={"network": "affine-mlp", "width": 48, "depth": 14},
    ),
    *_varied(_MNIST, "schedule", vgg_constant={"schedule": "constant"}),
    *_varied(_MNIST, "length", resnet_long={"network": "affine-resnet", "depth": 3, "epochs": 16}),
]
SETTINGS: dict[str, Setting] = {setting.name: setting for setting in _ALL}
