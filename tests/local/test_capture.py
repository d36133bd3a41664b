"""What blocks are given, which modules make a block, and what back-propagation wants of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sasgd_fused.local import back_matching, capture, local_hessian, still
from tests.local.networks import Skip, mixed_blocks, picture


class Branching(nn.Module):
    """A ResNet in small: a stem, residual blocks in a sequence, a list of layers, and a flattening between modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.conv1 = nn.Conv1d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool1d(2)
        self.layer1 = nn.Sequential(Skip(nn.Conv1d(4, 4, 3, padding=1)), Skip(nn.Conv1d(4, 4, 1)))
        self.average = nn.AdaptiveAvgPool1d(2)
        self.heads = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 2)])
        self.unused = nn.Linear(2, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(tokens).transpose(1, 2)
        hidden = self.pool(self.relu(self.bn1(self.conv1(hidden))))
        hidden = self.average(self.layer1(hidden)).flatten(1)
        for head in self.heads:
            hidden = self.relu(head(hidden))
        return hidden


def tokens() -> Tensor:
    return torch.randint(0, 7, (5, 8), generator=torch.Generator().manual_seed(0))


def test_blocks_of_a_network() -> None:
    torch.manual_seed(0)
    model = Branching()
    before = picture(model)
    calls = capture(model, tokens())
    assert picture(model) == before
    assert list(calls) == [
        *("conv1 … pool", "layer1.0", "layer1.1", "average"),
        *("heads.0 … relu", "heads.1 … relu"),
    ]
    assert list(calls["conv1 … pool"].module.children()) == [model.conv1, model.bn1, model.relu, model.pool]
    assert calls["layer1.1"].module is model.layer1[1]
    assert all(call.displacement is None and not call.inputs.requires_grad for call in calls.values())
    # Each block's output is what the next one is given.
    with still(model):
        for name, after in (("conv1 … pool", "layer1.0"), ("layer1.0", "layer1.1"), ("layer1.1", "average")):
            assert torch.equal(calls[name].module(calls[name].inputs), calls[after].inputs)


def test_displacements_are_those_of_back_propagation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*mixed_blocks()).double()
    images, labels = torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3])

    def loss(output: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, labels)

    before = picture(model)
    calls = capture(model, images, ["0", "1", "3", "6", "7"], loss=loss)
    assert picture(model) == before
    found = back_matching(model, images, loss)
    for name, call in calls.items():
        assert torch.equal(call.displacement, found.displacements[int(name) + 1])
    grouped = capture(model, images, loss=loss)
    # 4.2 is 5, too.
    assert list(grouped) == ["0", "1", "2", "3.0 … 4.1", "4.2 … 4.4", "4.2 … 6", "7"]
    for name, index in (("0", 1), ("4.2 … 4.4", 5), ("4.2 … 6", 7), ("7", 8)):
        assert torch.equal(grouped[name].displacement, found.displacements[index])


@pytest.mark.parametrize("trained", [True, False])
def test_a_module_that_writes_into_its_input(trained: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)).requires_grad_(trained)
    inputs = torch.randn(3, 4)
    before = model[0](inputs).detach()
    calls = capture(model, inputs, ["0", "1"], loss=torch.sum)
    assert torch.equal(calls["1"].inputs, before)
    assert torch.equal(calls["0"].displacement, -(before > 0).float())
    assert torch.equal(calls["1"].displacement, -torch.ones(3, 4))


def test_displacements_where_nothing_is_trained() -> None:
    torch.manual_seed(0)
    model = Branching()
    trained = capture(model, tokens(), loss=torch.sum)
    frozen = capture(model.requires_grad_(False), tokens(), loss=torch.sum)
    assert all(torch.equal(call.displacement, trained[name].displacement) for name, call in frozen.items())
    assert frozen["conv1 … pool"].displacement.any()
    assert not any(param.requires_grad for param in model.parameters())


def test_a_module_that_is_called_again() -> None:
    layer = nn.Linear(2, 2)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, inputs: Tensor) -> Tensor:
            output: Tensor = self.layer(self.layer(inputs))
            return output

    inputs = torch.randn(3, 2)
    for blocks in (None, ["layer"], ["layer", "layer"]):
        calls = capture(Twice(), inputs, blocks)
        assert list(calls) == ["layer", "layer_2"]
        assert torch.equal(calls["layer_2"].inputs, layer(inputs))


def test_blocks_in_blocks_and_a_network_of_one() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Linear(2, 1)), torch.randn(3, 2)
    calls = capture(model, inputs, ["", "0", "0.1"], loss=torch.sum)
    assert list(calls) == ["", "0", "0.1"] and calls[""].module is model
    assert torch.equal(calls["0"].displacement, calls["0.1"].displacement)
    assert list(capture(nn.Linear(2, 2), inputs)) == [""]


def test_ways_to_call_a_network() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Bilinear(2, 3, 2)

        def forward(self, first: Tensor, second: Tensor, scale: float = 1.0) -> Tensor:
            output: Tensor = self.layer(first, second) * scale
            return output

    model, first, second = Model(), torch.ones(4, 2), torch.randn(4, 3)
    for inputs in ((first, second), [first, second, 2.0], {"first": first, "second": second}):
        call = capture(model, inputs)["layer"]
        assert torch.equal(call.inputs, first)
        assert torch.equal(call.module(first + 1), model.layer(first + 1, second))
    with pytest.raises(TypeError, match="inputs: got int, want a tensor, a tuple of arguments or a mapping from names"):
        capture(model, 3)


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        (["conv9"], ValueError, "blocks: got 'conv9', want names of modules of Branching"),
        (["unused"], ValueError, "blocks: got 'unused', which the network did not call"),
        (["embedding"], TypeError, "blocks: got 'embedding', which takes no floating tensor"),
        ("conv1", TypeError, r"blocks: got the string 'conv1', want names of modules: \['conv1'\]"),
    ],
)
def test_errors(blocks: list[str], error: type[Exception], message: str) -> None:
    model = Branching()
    before = picture(model)
    with pytest.raises(error, match=message):
        capture(model, tokens(), blocks)
    assert picture(model) == before


def broken(output: Tensor) -> Tensor:
    raise ZeroDivisionError


@pytest.mark.parametrize("loss", [broken, None])
def test_an_exception_leaves_no_hooks(loss: Callable[[Tensor], Tensor] | None) -> None:
    model = Branching()
    before = picture(model)
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        capture(model, tokens() if loss else torch.ones(2, 2, 2, dtype=torch.int64), loss=loss)
    assert picture(model) == before


class Dense(nn.ModuleDict):
    """A container with a forward of its own, as torchvision's dense blocks."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, *(layer(inputs) for layer in self.values())], 1)


def test_a_container_with_a_forward_is_a_block() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Dense({"a": nn.Linear(2, 2), "b": nn.Linear(2, 3)}), nn.Linear(7, 1))
    assert list(capture(model, torch.ones(3, 2))) == ["0", "1", "2"]


class SelfAttention(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.options = options

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.attention(inputs, inputs, value=inputs, **self.options)[0]
        return output


@pytest.mark.parametrize("options", [{}, {"need_weights": False}])
def test_attention_to_itself_is_by_all_its_arguments(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model, inputs = SelfAttention(**options), torch.randn(2, 3, 4)
    call = capture(model, inputs)["attention"]
    assert torch.equal(call.module(inputs + 1)[0], model(inputs + 1))


class Pair(NamedTuple):
    hidden: Tensor
    number: int


class Returns(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(2, 2), make

    def forward(self, inputs: Tensor) -> Any:
        return self.make(self.layer(inputs))


@pytest.mark.parametrize("make", [lambda z: Pair(z, 3), lambda z: [z, 3], lambda z: (z, 3), lambda z: z.max(1)])
def test_a_block_returns_what_it_did(make: Callable[[Tensor], Any]) -> None:
    kinds = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Returns(make)

        def forward(self, inputs: Tensor) -> Tensor:
            output = self.block(inputs)
            kinds.append(type(output))
            found: Tensor = output[0]
            return found

    model, inputs = Model(), torch.ones(3, 2)
    model(inputs)
    assert torch.equal(capture(model, inputs, loss=torch.sum)["block"].displacement, -torch.ones_like(model(inputs)))
    assert len(set(kinds)) == 1


class Fails(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        raise KeyError


class Careful(nn.Module):
    """Goes another way where a child has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fails = nn.Linear(2, 2), nn.Sequential(nn.Tanh(), Fails())
        self.outer = Skip(nn.Linear(2, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.first(inputs)
        try:
            hidden = self.fails(hidden)
        except KeyError:
            hidden = self.outer(hidden)
        return hidden


def test_a_failure_that_the_network_catches() -> None:
    torch.manual_seed(0)
    model, inputs = Careful(), torch.randn(3, 2)
    hidden = model.first(inputs).detach()
    for blocks in (None, ["first", "outer", "outer.branch"]):
        calls = capture(model, inputs, blocks, loss=torch.sum)
        assert list(calls)[-1] == ("outer" if blocks is None else "outer.branch")
        assert not any("fails.1" in name for name in calls)
        assert torch.equal(calls["outer"].inputs, hidden)
        assert torch.equal(calls["outer"].displacement, -torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"blocks: got 'fails', which the network did not call or which returned noth"):
        capture(model, inputs, ["fails"])


def test_it_prints_shortly() -> None:
    call = capture(nn.Linear(99, 3), torch.ones(50, 99), loss=torch.sum)[""]
    assert repr(call) == "Captured(Linear, inputs (50, 99) torch.float32, displacement (50, 3))"
    hessian = local_hessian(call.module, call.inputs)
    assert repr(hessian) == "LocalHessian(4950 × 4950, torch.float32, by a tensor of (50, 99), Gauss-Newton)"
    assert repr(hessian.jacobian) == "Jacobian((50, 99) → (50, 3), torch.float32)"
