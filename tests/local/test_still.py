"""`still` makes two evaluations the same, and leaves a network as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sasgd_fused.local import still
from tests.test_imports import imported, sources


class DropPath(nn.Module):
    """Stochastic depth as in timm, which is known by its name."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * (torch.rand(len(inputs), 1, 1) > 0.5) if self.training else inputs


class Counting(nn.Module):
    """Has buffers of its own that it writes, and one that it replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.add_(1)
        self.mean = inputs.detach().mean()
        return inputs


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.inner(inputs, inputs, inputs)[0]
        return output


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(6, 6, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.inner(inputs)[0]
        return output


class Registering(nn.Module):
    """Makes a buffer when it is first called."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.rand(()), persistent=False)
        return inputs


def test_buffers_that_were_registered_are_gone() -> None:
    model = Registering()
    with still(model):
        model(torch.ones(1))
        assert hasattr(model, "scale")
    assert not hasattr(model, "scale") and not model._non_persistent_buffers_set


# What is not the same twice, or writes, in training mode. All take and return (4, 3, 6).
RESTLESS: dict[str, nn.Module] = {
    "dropout": nn.Dropout(0.5),
    "feature dropout": nn.Dropout1d(0.5),
    "alpha dropout": nn.AlphaDropout(0.5),
    "stochastic depth": DropPath(),
    "randomized relu": nn.RReLU(),
    "attention": Attention(),
    "recurrent": Recurrent(),
    "batch norm": nn.BatchNorm1d(3, momentum=None),
    "instance norm": nn.InstanceNorm1d(3, track_running_stats=True),
    "spectral norm": parametrizations.spectral_norm(nn.Linear(6, 6)),
    "own buffers": Counting(),
}


def picture(model: nn.Module) -> dict[str, Any]:
    """All that `still` may touch, as bits; parameters' gradients too."""
    tensors = [*model.state_dict(keep_vars=True).values(), *(param.grad for param in model.parameters())]
    return {
        "tensors": [None if tensor is None else (tensor.tolist(), tensor.requires_grad) for tensor in tensors],
        "objects": [id(tensor) for tensor in model.state_dict(keep_vars=True).values()],
        "attributes": [(part.training, vars(part).get("dropout")) for part in model.modules()],
        "statistics": [vars(part).get("track_running_stats") for part in model.modules()],
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("name", RESTLESS)
@pytest.mark.parametrize("training", [True, False])
def test_the_same_input_gives_the_same_output_and_leaves_no_trace(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model, inputs = RESTLESS[name].train(training), torch.randn(4, 3, 6)
    before = picture(model)
    with still(model):
        first, second = model(inputs), model(inputs)
        torch.rand(())
    assert torch.equal(first, second)
    assert picture(model) == before
    if training:
        torch.rand(())
        model(inputs)
        assert picture(model) != before  # or this would say nothing


@pytest.mark.parametrize("name", ["dropout", "batch norm", "instance norm", "attention", "own buffers"])
def test_an_exception_leaves_no_trace(name: str) -> None:
    model = RESTLESS[name].train()
    before = picture(model)
    with pytest.raises(ZeroDivisionError), still(model):
        model(torch.randn(4, 3, 6))
        raise ZeroDivisionError
    assert picture(model) == before


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)])
def test_batch_statistics_are_those_of_the_mode(norm: nn.Module) -> None:
    inputs = 5 + torch.randn(4, 3, 6)
    for training in (True, False):
        with still(norm.train(training)):
            output = norm(inputs)
        assert (output.mean().abs() < 1e-4) == training


def test_the_package_does_not_load_it() -> None:
    texts = sources()
    assert [
        file
        for file, text in texts.items()
        if not file.startswith("local/") and any(other.startswith("local/") for other in imported(text, texts))
    ] == []
