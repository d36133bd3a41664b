"""Which weights are the heads: named, told by the model, or guessed and warned of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from sasgd_fused import ScaleAmendedSGD, parameter_groups

pytestmark = pytest.mark.usefixtures("default_device")


def net(**children: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(children))


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, groups=groups)


def segmentation() -> nn.Sequential:
    """As torchvision's with an auxiliary classifier."""
    return net(
        backbone=conv(3, 16),
        classifier=nn.Sequential(conv(16, 8), nn.ReLU(), conv(8, 21)),
        aux_classifier=nn.Sequential(conv(16, 8), nn.ReLU(), conv(8, 21)),
    )


def heads_of(model: nn.Module, heads: Any = None) -> list[str]:
    amended = parameter_groups(model, heads)[-1]
    marks = amended.get("heads") or [False] * (len(amended["params"]) - 1) + [True]
    return [name for (name, _), mark in zip(amended["params"], marks, strict=True) if mark]


@pytest.mark.parametrize(
    "heads",
    [
        ["classifier", "aux_classifier"],
        ("classifier.2.weight", "aux_classifier.2"),
        lambda model: [model.classifier, model.aux_classifier[2]],
        lambda model: (model[k] for k in (1, 2)),
    ],
    ids=["modules' names", "a parameter's name", "modules", "an iterator"],
)
def test_heads_may_be_given(heads: Any) -> None:
    model = segmentation()
    given = heads(model) if callable(heads) else heads
    assert heads_of(model, given) == ["classifier.2.weight", "aux_classifier.2.weight"]


@pytest.mark.parametrize("heads", ["classifier", "classifier.2.weight", lambda model: model.classifier])
def test_one_head_may_be_given(heads: Any) -> None:
    model = segmentation()
    given = heads(model) if callable(heads) else heads
    _, amended = parameter_groups(model, heads=given)
    assert amended["heads"] == [False, False, True, False, False]
    ScaleAmendedSGD(parameter_groups(model, heads=given))


def test_the_last_weight_as_the_only_head_needs_no_key() -> None:
    """A flattened checkpoint has an entry for each key, and old ones lack this."""
    for heads in ("aux_classifier", ["aux_classifier.2", "aux_classifier"]):
        _, amended = parameter_groups(segmentation(), heads=heads)
        assert "heads" not in amended


def test_a_tied_head_stands_at_its_last_place() -> None:
    model = net(decoder=nn.Linear(4, 9), embedding=nn.Linear(9, 4), body=nn.Linear(4, 4), lm=nn.Linear(4, 9))
    model.lm.weight = model.decoder.weight
    _, amended = parameter_groups(model, heads="decoder")
    assert amended["params"][-1][0] == "decoder.weight"
    assert "heads" not in amended


@pytest.mark.parametrize(
    ("heads", "text"),
    [
        ("clasifier", "got 'clasifier', want names of modules or parameters of Sequential, or modules of it"),
        (["classifier", nn.Linear(2, 2)], "got a Linear that is not one of its modules, want names of modules"),
        ("classifier.1", "got 'classifier.1', which has no amended weight, want modules or parameters that have one"),
        ("classifier.2.bias", r"got 'classifier\.2\.bias', which has no amended weight"),
        (3, "got a int that is not one of its modules"),
        ([], "got none, want at least one name or module, or None"),
    ],
)
def test_heads_that_the_model_does_not_have_are_refused(heads: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"^heads: {text}"):
        parameter_groups(segmentation(), heads=heads)


class WithClassifier(nn.Module):
    """As timm's models are."""

    def __init__(self, get_classifier: Callable[[Any], Any]) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)
        self.head_dist = nn.Linear(8, 3)
        self.get_classifier = lambda: get_classifier(self)


@pytest.mark.parametrize("several", [tuple, list, nn.ModuleList])
def test_a_model_may_tell_its_classifiers(several: Callable[[Any], Any]) -> None:
    assert heads_of(WithClassifier(lambda model: several([model.head, model.head_dist]))) == [
        *("head.weight", "head_dist.weight")
    ]


def test_a_model_may_tell_its_classifier() -> None:
    assert heads_of(WithClassifier(lambda model: model.head)) == ["head.weight"]
    assert heads_of(WithClassifier(lambda model: model.head), heads="head_dist") == ["head_dist.weight"]


def fail(model: nn.Module) -> None:
    raise NotImplementedError


@pytest.mark.parametrize(
    "get_classifier",
    [lambda model: None, lambda model: nn.Identity(), lambda model: nn.Linear(8, 3), lambda model: "head", fail],
    ids=["None", "Identity", "another model's", "a name", "not implemented"],
)
def test_a_classifier_that_tells_nothing_leaves_the_heads_unknown(get_classifier: Callable[[Any], Any]) -> None:
    with pytest.warns(UserWarning, match=r"^heads: got None, .* head_dist\.weight, is the only head, but head\.weight"):
        assert heads_of(WithClassifier(get_classifier)) == ["head_dist.weight"]


def test_several_outputs_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="heads: got None") as caught:
        assert heads_of(segmentation()) == ["aux_classifier.2.weight"]
    (warning,) = caught
    assert str(warning.message) == (
        "heads: got None, by which the last amended weight, aux_classifier.2.weight, is the only head, but "
        "classifier.2.weight may give outputs too; want the names of all heads, or heads='aux_classifier.2.weight'"
    )
    model = segmentation()
    model.classifier.requires_grad_(False)
    assert heads_of(model) == ["aux_classifier.2.weight"]


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: net(low=conv(8, 8), low_classifier=conv(8, 5), high_classifier=conv(4, 5)), "low_classifier"),
        (lambda: net(body=conv(3, 8), cls_logits=conv(8, 27), bbox_reg=conv(8, 12)), "cls_logits"),
        (lambda: net(fc6=nn.Linear(9, 8), cls_score=nn.Linear(8, 91), bbox_pred=nn.Linear(8, 364)), "cls_score"),
        (lambda: net(body=conv(3, 8), flow_head=conv(8, 2), mask_predictor=conv(8, 57)), "flow_head"),
        (lambda: net(body=conv(3, 8), aux=nn.Linear(8, 10), mixed=conv(8, 7), fc=nn.Linear(7, 10)), "aux"),
        (lambda: net(body=nn.Linear(3, 8), actor=nn.Linear(8, 5), critic=nn.Linear(8, 1)), "actor"),
        (lambda: net(query=nn.Linear(7, 4), key=nn.Linear(9, 4)), "query"),
    ],
    ids=["lraspp", "fcos", "rcnn", "raft", "inception", "actor-critic", "two towers"],
)
def test_other_outputs_are_told_by_shapes_and_names(make: Callable[[], nn.Module], other: str) -> None:
    with pytest.warns(UserWarning, match=rf"is the only head, but {other}\.weight may give outputs too"):
        parameter_groups(make())


@pytest.mark.parametrize(
    "make",
    [
        lambda: net(features=conv(3, 8), classifier=nn.Sequential(nn.Linear(8 * 49, 8), nn.Linear(8, 10))),
        lambda: net(a=conv(3, 8), squeeze=conv(8, 2), excite=conv(2, 8), b=conv(8, 8, groups=8), fc=nn.Linear(8, 10)),
        lambda: net(a=conv(3, 8), dense=conv(8, 4), transition=conv(12, 6), fc=nn.Linear(6, 10)),
        lambda: net(patch=conv(3, 8), block=nn.TransformerEncoderLayer(8, 2, 16), heads=nn.Linear(8, 10)),
        lambda: net(encoder=nn.Linear(9, 4), decoder=nn.Linear(4, 9)),
        lambda: net(enter=conv(3, 8), down=conv(8, 16), up=nn.ConvTranspose2d(16, 8, 2), end=conv(16, 3)),
        lambda: net(body=nn.Linear(9, 8), mean=nn.Linear(8, 3), variance=nn.Linear(8, 3), decoder=nn.Linear(3, 9)),
        lambda: net(cls=net(transform=nn.Linear(8, 8), decoder=nn.Linear(8, 90))),
        lambda: nn.Linear(3, 3),
    ],
    ids=["vgg", "mobilenet", "densenet", "vit", "autoencoder", "unet", "vae", "bert", "one layer"],
)
def test_networks_with_one_output_are_not_warned_of(make: Callable[[], nn.Module]) -> None:
    parameter_groups(make())  # warnings are errors
