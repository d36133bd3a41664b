"""The study's networks: as wide and deep as asked, with vectors where the name says so, and initialised by the seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from experiments.study.networks import NETWORKS, Init, make_network
from experiments.study.settings import SETTINGS
from experiments.study.tasks import load_task

IMAGE = (1, 14, 14)
BATCH_NORMALIZED = ("mlp", "narrowing-mlp", "widening-mlp", "vgg", "resnet", "depthwise")


def make(name: str, width: int = 8, depth: int = 4, init: Init = "plain", seed: int = 0) -> nn.Module:
    return make_network(name, IMAGE, 10, width, depth, init, seed)


def matrices(model: nn.Module) -> list[Tensor]:
    return [param.detach() for param in model.parameters() if param.dim() >= 2]


def rows(name: str, width: int, depth: int) -> list[int]:
    return [len(weight) for weight in matrices(make(name, width, depth))]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_network_for_its_images(name: str) -> None:
    setting = SETTINGS[name]
    data = load_task(setting.task, tuning=True, classes=setting.classes)
    channels, height, breadth = data.test[0].shape[1:]
    size = (channels, height, breadth)
    model = make_network(setting.network, size, setting.classes, setting.width, setting.depth, setting.init, 0)
    assert model.eval()(data.test[0][:3]).shape == (3, setting.classes)


def test_mlps_have_the_widths_of_their_names() -> None:
    assert rows("mlp", 64, 3) == [64, 64, 64, 10]
    assert rows("narrowing-mlp", 64, 5) == [256, 128, 64, 32, 16, 10]
    assert rows("widening-mlp", 64, 5) == [16, 32, 64, 128, 256, 10]


def test_three_stages_share_the_depth_and_double_the_width() -> None:
    assert rows("vgg", 8, 4) == [8, 8, 16, 32, 10]
    assert rows("vgg", 4, 12) == [4] * 4 + [8] * 4 + [16] * 4 + [10]
    convolutions = [module for module in make("resnet", 8, 3).modules() if isinstance(module, nn.Conv2d)]
    assert [convolution.out_channels for convolution in convolutions] == [8, 8, 8, 16, 16, 16, 32, 32, 32]
    assert rows("depthwise", 8, 3) == [8, 8, 8, 8, 16, 16, 32, 10]


@pytest.mark.parametrize("name", BATCH_NORMALIZED)
def test_only_affine_networks_have_vectors(name: str) -> None:
    assert all(param.dim() >= 2 for param in make(name).parameters())
    affine = make(f"affine-{name}")
    vectors = [param for param in affine.parameters() if param.dim() < 2]
    assert len(vectors) == 2 * sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in affine.modules()) > 0
    images = torch.randn(5, *IMAGE)
    torch.testing.assert_close(affine(images), make(name)(images))


def test_tokens_have_places() -> None:
    model = make("transformer", 8, 1).eval()
    images = torch.randn(2, *IMAGE)
    assert not torch.allclose(model(images), model(images.flip(-1)))


# Initialisation


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_follow_from_the_seed_alone(name: str) -> None:
    first, state = make(name), torch.get_rng_state()
    second = make(name)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    third = make(name)
    for weights in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(weights[0], weights[2])
    assert not torch.equal(matrices(make(name, seed=1))[0], matrices(first)[0])


@pytest.mark.parametrize(("init", "factor"), [("times 10", 10.0), ("times 0.1", 0.1)])
@pytest.mark.parametrize("name", ["mlp", "affine-vgg", "transformer"])
def test_hidden_layers_are_initialised_by_a_factor(name: str, init: Init, factor: float) -> None:
    *hidden, head = zip(matrices(make(name)), matrices(make(name, init=init)), strict=True)
    for plain, changed in hidden:
        torch.testing.assert_close(changed, factor * plain)
    assert torch.equal(*head)


def test_each_hidden_layer_has_a_factor_of_its_own() -> None:
    *hidden, head = zip(matrices(make("mlp")), matrices(make("mlp", init="random")), strict=True)
    factors = [(changed / plain).median().item() for plain, changed in hidden]
    assert len(set(factors)) == 4
    assert all(0.1 <= factor <= 10 for factor in factors)
    assert torch.equal(*head)
    other = matrices(make("mlp", init="random", seed=1))[0] / matrices(make("mlp", seed=1))[0]
    assert other.median().item() != pytest.approx(factors[0])
