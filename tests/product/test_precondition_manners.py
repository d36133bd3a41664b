"""The preconditioner among what else a training does: which forwards count, errors, checkpoints, mixed precision."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from sasgd_fused.precondition import CovariancePreconditioner
from tests.helpers import DEVICE, assert_close, message, randn, through_file
from tests.product.test_precondition import gradients, literal, loss_of
from tests.unchanged import bits

pytestmark = pytest.mark.usefixtures("default_device")

METHODS: dict[str, dict[str, Any]] = {
    "inverse": {"every": 2},
    "centred": {"inverse": False},
    "alpha max": {"every": 2, "alpha": "max", "loss_reduction": "mean"},
}
methods = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)


class Network(nn.Module):
    """With a nonlinearity in place, which a hook on a module's backward would not survive."""

    def __init__(self, reentrant: bool | None = None, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.first = nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(20, 6, bias=False),
            nn.Tanh(),
        )
        self.last = nn.Linear(6, 3)
        self.to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.reentrant is None:
            hidden = self.first(inputs)
        else:
            hidden = checkpoint(self.first, inputs.detach().requires_grad_(), use_reentrant=self.reentrant)
        outputs: Tensor = self.last(input=hidden)  # by name, as some do
        return outputs


def images(step: int = 0, count: int = 8) -> Tensor:
    return randn((count, 2, 5), torch.Generator().manual_seed(step), torch.float64) + 0.5


def train(model: Any, preconditioner: CovariancePreconditioner, steps: range = range(3)) -> list[list[int]]:
    """The bits of the weights in the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in steps:
        optimizer.zero_grad()
        loss_of(model(images(step))).backward()
        preconditioner.step()
        optimizer.step()
    return [bits(param) for param in model.parameters()]


def test_a_step_without_a_covariance_of_its_own_has_its_own_mean() -> None:
    layer, epsilon = Network().last, 0.1
    preconditioner = CovariancePreconditioner(layer, every=2, damping=epsilon)
    for step in range(4):
        inputs = images(step, count=3).view(5, 6)
        layer.zero_grad()
        loss_of(layer(inputs)).backward()
        of_weight, of_bias = gradients(layer)
        preconditioner.step()
        mean, of_covariance = inputs.mean(0), images(step - step % 2, count=3).view(5, 6)
        damped = torch.cov(of_covariance.mT, correction=0) + epsilon * torch.eye(6, dtype=torch.float64)
        damped += epsilon / (1 + epsilon) * torch.outer(of_covariance.mean(0), of_covariance.mean(0))
        weight = (of_weight - torch.outer(of_bias, mean) / (1 + epsilon)) @ torch.linalg.inv(damped)
        assert_close(layer.weight.grad, weight, torch.float64)
        assert_close(layer.bias.grad, (of_bias - weight @ mean) / (1 + epsilon), torch.float64)


@methods
def test_several_backward_passes_have_the_inputs_of_all(options: dict[str, Any]) -> None:
    """As one pass over all of them; with forwards between in `eval` and under `no_grad`, which do not count."""
    whole, parts = Network(), Network()
    of_whole, of_parts = (CovariancePreconditioner(model, **options) for model in (whole, parts))
    loss_of(whole(images(count=12))).backward()
    of_whole.step()
    sizes = [6, 6] if "alpha" in options else [3, 9]
    for part in images(count=12).split(sizes):
        (loss_of(parts(part)) * len(part) / 12).backward()
        parts.eval()(100 * part)
        with torch.no_grad():
            parts.train()(100 * part)
    of_parts.step(loss_scale=0.5)
    for actual, expected in zip(gradients(parts), gradients(whole), strict=True):
        assert_close(actual, expected, torch.float64)


@methods
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(options: dict[str, Any], reentrant: bool) -> None:
    expected = train(plain := Network(), CovariancePreconditioner(plain, **options))
    model = Network(reentrant)
    assert train(model, CovariancePreconditioner(model, **options)) == expected


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_of_the_whole_model_counts_once(reentrant: bool) -> None:
    """Beside a batch without one, for which half of the inputs are then."""
    ended = []
    for is_checkpointed in (False, True):
        model = Network()
        preconditioner = CovariancePreconditioner(model)
        first = images(0).requires_grad_()
        outputs = checkpoint(model, first, use_reentrant=reentrant) if is_checkpointed else model(first)
        loss_of(outputs).backward()
        loss_of(model(images(1) + 1)).backward()
        preconditioner.step()
        ended.append([bits(grad) for grad in gradients(model)])
    assert ended[0] == ended[1]


def test_a_model_whose_parts_are_called_one_by_one() -> None:
    """Once between two steps."""
    expected = train(plain := Network(), CovariancePreconditioner(plain))
    model = Network()
    optimizer, preconditioner = torch.optim.SGD(model.parameters(), lr=0.1), CovariancePreconditioner(model)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model.last(model.first(images(step)))).backward()
        preconditioner.step()
        optimizer.step()
    assert [bits(param) for param in model.parameters()] == expected


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by dynamo
def test_a_compiled_model_does_the_same() -> None:
    """Each layer breaks the graph."""
    options = METHODS["alpha max"]
    expected = train(plain := Network(), CovariancePreconditioner(plain, **options))
    model = Network()
    preconditioner = CovariancePreconditioner(model, **options)
    assert train(torch.compile(model, backend="eager"), preconditioner) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"model": [torch.ones(2, 2)]}, TypeError, ["model: got list", "want a torch.nn.Module"]),
        ({"model": nn.ReLU()}, ValueError, ["model: got ReLU", "want", "nn.Linear or convolution"]),
        ({"model": nn.Linear(2, 2, bias=False), "inverse": False}, ValueError, ["model: got Linear", "with a bias"]),
        ({"model": nn.LazyLinear(2)}, ValueError, ["model: got the uninitialized parameter weight", "run once"]),
        ({"every": 0}, ValueError, ["every: got 0", "want a positive int"]),
        ({"every": 2.0}, ValueError, ["every: got 2.0", "want a positive int"]),
        ({"damping": -1.0}, ValueError, ["damping: got -1.0", "want a finite number of at least 0"]),
        ({"damping": float("inf")}, ValueError, ["damping: got inf", "want a finite number"]),
        ({"alpha": 0}, ValueError, ["alpha: got 0", "want a finite number above 0"]),
        ({"alpha": "mean"}, ValueError, ["alpha: got 'mean'", 'or "max"']),
        ({"alpha": 2.0, "inverse": False}, ValueError, ["alpha: got 2.0 with inverse=False", "want 1.0"]),
        ({"alpha": "max"}, ValueError, ["loss_reduction: got None", "want 'mean' or 'sum'"]),
        ({"loss_reduction": "sum"}, ValueError, ["loss_reduction: got 'sum'", "want None with alpha=1.0"]),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], parts: list[str]) -> None:
    with pytest.raises(error, match=message(*parts)):
        CovariancePreconditioner(**{"model": nn.Linear(2, 2), **arguments})


def test_a_step_that_cannot_be_taken_changes_no_gradient() -> None:
    """The last layer has no inputs: first in a model in evaluation mode, then because its step has been taken."""
    model = Network()
    preconditioner = CovariancePreconditioner(model)
    model.last.eval()
    loss_of(model(images())).backward()
    for wrong in (0, float("nan")):
        with pytest.raises(ValueError, match=message("loss_scale: got", "want a finite number above 0")):
            preconditioner.step(loss_scale=wrong)
    for _ in range(2):
        grads = [param.grad for param in model.parameters() if param.grad is not None]
        before = [(bits(grad), grad._version) for grad in grads]
        with pytest.raises(
            RuntimeError, match=message("step: got a gradient of the layer 'last'", "want a forward in")
        ):
            preconditioner.step()
        assert [(bits(grad), grad._version) for grad in grads] == before
        model.train().zero_grad()
        loss_of(model(images())).backward()
        preconditioner.step()
        model.first.zero_grad()  # of these a step would be possible


def test_a_layer_that_is_called_twice_in_a_forward_is_refused_by_name() -> None:
    """Twice between two steps is no fault, as with two batches before one backward."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(3, 3)
            self.times = 1

        def forward(self, inputs: Tensor) -> Tensor:
            for _ in range(self.times):
                inputs = self.shared(inputs)
            return inputs

    model = Twice()
    preconditioner = CovariancePreconditioner(model)
    (model(torch.ones(2, 3)) + model(torch.zeros(2, 3))).sum().backward()
    preconditioner.step()
    model.times = 2
    with pytest.raises(
        RuntimeError, match=message("model: got a second call of the layer 'shared'", "want one at most")
    ):
        model(torch.ones(2, 3))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_which_layers_are_preconditioned() -> None:
    class Other(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "convolution": nn.Conv3d(4, 4, 1, groups=4),
            "no bias": nn.Conv1d(4, 4, 1, bias=False),
            "transposed": nn.ConvTranspose1d(4, 4, 1),
            "subclass": Other(4, 4),
            "parametrized": parametrizations.spectral_norm(nn.Linear(4, 4)),
            "attention": nn.MultiheadAttention(4, 1),
            "complex": nn.Linear(4, 4, dtype=torch.complex64),
            "empty": nn.Linear(4, 0),
            "tied": nn.Linear(4, 4),
            "embedding": nn.Embedding(4, 4),
        }
    )
    model["tied"].weight = model["embedding"].weight
    assert list(CovariancePreconditioner(model).layers) == ["linear", "convolution", "no bias"]
    assert list(CovariancePreconditioner(model, inverse=False).layers) == ["linear", "convolution"]


def test_frozen_parameters() -> None:
    """The bias of a frozen weight keeps its gradient; a weight with a frozen bias is one without bias."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    inputs = images(count=4).view(10, 4)
    preconditioner = CovariancePreconditioner(model, damping=0.1)
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    loss_of(model(inputs)).backward()
    before = [model[0].bias.grad.clone(), model[2].weight.grad.clone()]
    preconditioner.step()
    assert torch.equal(model[0].bias.grad, before[0])
    (expected,) = literal(model[:2](inputs).detach(), before[1:], 0.1)
    assert_close(model[2].weight.grad, expected, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_16_bit_parameters_have_statistics_in_float32(dtype: torch.dtype) -> None:
    """What is stored is rounded once."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3).to(dtype)
    inputs = images(count=30).view(50, 6).to(dtype)
    preconditioner = CovariancePreconditioner(layer, damping=0.1)
    loss_of(layer(inputs)).backward()
    before = gradients(layer)
    preconditioner.step()
    assert preconditioner.state_dict()[""]["inverse"].dtype == torch.float32
    expected = literal(inputs.double(), [grad.double() for grad in before], 0.1)
    for a, e in zip(gradients(layer), expected, strict=True):
        assert a.dtype == dtype
        assert_close(a, e, dtype, scale=10.0 if dtype == torch.float32 else 0.0)


def test_a_covariance_that_cannot_be_factored_gets_more_damping() -> None:
    """Of which is warned once. Inputs along one direction, far longer than what is added to their squares."""
    layer = nn.Linear(6, 3)
    preconditioner = CovariancePreconditioner(layer, every=1, damping=1e-8)
    caught = []
    for step in range(2):
        layer.zero_grad()
        loss_of(layer(1e3 * torch.ones(8, 6) * torch.arange(1.0, 9)[:, None])).backward()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            preconditioner.step()
        caught += told
        assert all(grad.isfinite().all() for grad in gradients(layer)), step
    assert len(caught) == 1 and caught[0].filename == __file__
    assert "damping: 1e-08 is too little to factor the covariance of the inputs of ''" in str(caught[0].message)
    assert 1e-8 < preconditioner.state_dict()[""]["epsilon"] < 1e6


@pytest.mark.parametrize("largest", [0.0, float("inf")])
def test_a_covariance_is_not_taken_where_alpha_tells_no_damping(largest: float) -> None:
    """The next step takes it; until then there is nothing to multiply by."""
    layer = nn.Linear(6, 3)
    preconditioner = CovariancePreconditioner(layer, alpha="max", loss_reduction="sum")
    for factor in (largest, 1.0):
        layer.zero_grad()
        (layer(torch.ones(8, 6)) * torch.tensor([factor, 0.0, 0.0])).sum().backward()
        preconditioner.step()
        assert bool(preconditioner.state_dict()) == (factor == 1)
    layer.zero_grad()
    (layer(torch.ones(8, 6)) * 0).sum().backward()
    preconditioner.step()
    assert all(grad.eq(0).all() for grad in gradients(layer))


@methods
def test_training_goes_on_from_a_checkpoint_to_the_bit(options: dict[str, Any]) -> None:
    options = options | {"every": 3}
    expected = train(plain := Network(), CovariancePreconditioner(plain, **options), range(5))
    begun, model = Network(), Network()
    preconditioner = CovariancePreconditioner(begun, **options)
    train(begun, preconditioner, range(2))
    saved = through_file({"model": begun.state_dict(), "preconditioner": preconditioner.state_dict()})
    model.load_state_dict(saved["model"])
    resumed = CovariancePreconditioner(model, **options)
    resumed.load_state_dict(saved["preconditioner"])
    assert train(model, resumed, range(2, 5)) == expected


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing() -> None:
    model = Network()
    preconditioner = CovariancePreconditioner(model)
    train(model, preconditioner)
    before = copy.deepcopy(preconditioner.state_dict())
    of_wrong_shape = {**before, "last": {**before["last"], "inverse": torch.ones(1, 5, 5)}}
    with pytest.raises(ValueError, match=message("state_dict: got (1, 5, 5) for the layer last", "want (1, 6, 6)")):
        preconditioner.load_state_dict(of_wrong_shape)
    with pytest.raises(ValueError, match=message("state_dict: got the layers other", "want some of first.0")):
        preconditioner.load_state_dict({"other": before["last"]})
    after = preconditioner.state_dict()
    assert [(key, bits(of["inverse"]), of["age"]) for key, of in after.items()] == [
        (key, bits(of["inverse"]), of["age"]) for key, of in before.items()
    ]


@methods
def test_removed_hooks_leave_the_model_as_it_was(options: dict[str, Any]) -> None:
    """Copies of a model with hooks, and what comes back from a pickle of it, are not looked at."""
    model = Network()
    before = pickle.dumps(model)
    preconditioner = CovariancePreconditioner(model, **options)
    assert pickle.dumps(model) != before
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(images()).sum().backward()
    assert all(layer.moments is None for layer in preconditioner._layers.values())
    preconditioner.remove()
    assert pickle.dumps(model) == before
    loss_of(model(images())).backward()
    expected = gradients(model)
    preconditioner.step()
    assert all(map(torch.equal, gradients(model), expected))


def test_hooks_of_a_preconditioner_that_is_gone_do_nothing() -> None:
    model = Network()
    CovariancePreconditioner(model, alpha="max", loss_reduction="sum")
    model(images()).sum().backward()


@methods
def test_before_scale_amended_sgd(options: dict[str, Any]) -> None:
    """In groups that are not amended, its step is SGD's."""
    plain, model = Network(), Network()
    expected = train(plain, CovariancePreconditioner(plain, **options))
    preconditioner = CovariancePreconditioner(model, **options)
    groups = parameter_groups(model)
    for group in groups:
        group["amend"] = False
    optimizer = ScaleAmendedSGD(groups, lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model(images(step))).backward()
        preconditioner.step()
        optimizer.step()
    for param, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(param, wanted, torch.float64)
    assert expected


@methods
@pytest.mark.parametrize("spoilt", ["loss", "inputs"])
def test_a_step_that_a_grad_scaler_skips_leaves_no_trace(options: dict[str, Any], spoilt: str) -> None:
    """The first step of all, and one that would take a covariance."""
    ended = []
    for spoilt_before in ((), (0, 2)):
        model = Network(dtype=torch.float32)
        preconditioner = CovariancePreconditioner(model, **{**options, "every": 1})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = GradScaler(DEVICE.type, init_scale=1024)
        for step in range(4):
            for is_spoilt in [True, False] if step in spoilt_before else [False]:
                factor = {name: float("inf") if is_spoilt and name == spoilt else 1.0 for name in ("loss", "inputs")}
                optimizer.zero_grad()
                loss = loss_of(model(images(step).float() * factor["inputs"])) * factor["loss"]
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                before = [bits(param) for param in model.parameters()]
                preconditioner.step(loss_scale=scaler.get_scale())
                scaler.step(optimizer)
                scaler.update()
                assert ([bits(param) for param in model.parameters()] == before) == is_spoilt
                assert all(of["inverse"].isfinite().all() for of in preconditioner.state_dict().values())
        ended.append([bits(param) for param in model.parameters()])
    assert ended[0] == ended[1]
