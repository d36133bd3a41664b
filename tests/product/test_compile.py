"""A compiled training step does what it does uncompiled, to the bit; a schedule or checkpoint compiles nothing anew."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import ExponentialLR

from sasgd_fused import ScaleAmendedSGD, parameter_groups
from tests.helpers import DEVICE, FAST_BACKENDS, backends
from tests.tiers import thin
from tests.unchanged import bits

# Of torch's own, about the profiler and about dynamo itself.
pytestmark = pytest.mark.filterwarnings("ignore")
INDUCTOR = pytest.param("inductor", marks=pytest.mark.nightly)
OPTIONS: list[dict[str, Any]] = [{}, {"norms": "freeze"}, {"scale": "relative"}]


class Training:
    """A model, its optimizer and schedule, and something else that reads the weights."""

    def __init__(self, backend: str = "foreach", **options: Any) -> None:
        torch.manual_seed(0)
        self.inputs, self.labels = torch.randn(16, 4).to(DEVICE), torch.randint(0, 3, (16,)).to(DEVICE)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(DEVICE)
        self.model[2].bias.requires_grad_(False)  # it has no gradient
        self.optimizer = ScaleAmendedSGD(
            parameter_groups(self.model), lr=0.05, momentum=0.9, backend=backend, **options
        )
        self.average = self.model[0].weight.detach().clone()

    @property
    def weight(self) -> Tensor:
        return next(self.model.parameters())

    def lower(self) -> None:
        """As a schedule does."""
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.9

    def backward(self) -> None:
        nn.functional.cross_entropy(self.model(self.inputs), self.labels).backward()

    def step(self) -> None:
        """Others read the weights before and after."""
        with torch.no_grad():
            before = self.weight * 2
        self.optimizer.step()
        with torch.no_grad():
            self.average.lerp_(self.weight + before, 0.5)


def assert_same(ours: Training, theirs: Training) -> None:
    """To the bit."""
    of_both = [[bits(tensor) for tensor in (*each.model.parameters(), each.average)] for each in (ours, theirs)]
    assert of_both[0] == of_both[1]
    assert not any(row.stale_steps for row in ours.optimizer.layer_report())


def compiled(function: Callable[..., Any], compiler: str = "eager") -> tuple[Callable[..., Any], Any]:
    """Also returns what counts the compilations as `frame_count`."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(compiler)
    return torch.compile(function, backend=counter), counter


@thin(slow=1)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("options", OPTIONS, ids=["track", "freeze", "relative"])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_compiled_step(compiler: str, options: dict[str, Any], backend: str) -> None:
    ours, theirs = Training(backend, **options), Training(backend, **options)
    step, counter = compiled(ours.step, compiler)
    compilations = []
    for _ in range(5):
        for training, run in ((ours, step), (theirs, theirs.step)):
            training.backward()
            run()
            training.optimizer.zero_grad()
            training.lower()
        assert_same(ours, theirs)
        compilations.append(counter.frame_count)
    assert compilations == [2] * 5, "what stands before the step, and what after it; nothing for a new learning rate"


@pytest.mark.parametrize("backend", backends())
def test_a_whole_training_step(backend: str) -> None:
    """Torch breaks the graph at `zero_grad`, at `backward`, and at a step that a scheduler watches; we at a step."""
    ours, theirs = Training(backend), Training(backend)
    schedules = [ExponentialLR(training.optimizer, 0.9) for training in (ours, theirs)]

    def whole(training: Training) -> None:
        training.optimizer.zero_grad()
        training.backward()
        training.step()

    run, counter = compiled(lambda: whole(ours))
    torch._dynamo.utils.counters.clear()
    compilations = []
    for _ in range(6):
        run()
        whole(theirs)
        for schedule in schedules:
            schedule.step()
        compilations.append(counter.frame_count)
    assert_same(ours, theirs)
    assert compilations[2:] == compilations[2:3] * 4, "a new learning rate compiles nothing anew"
    places = r"Optimizer.zero_grad|Tensor.backward|optim/lr_scheduler.py|_update_outside_graph"
    older = r"^call_method OptimizerVariable\(\w+\) step "  # torch 2.6, of the step that a scheduler watches
    for told in torch._dynamo.utils.counters["graph_break"]:
        assert re.search(f"{places}|{older}", told), told


def test_one_graph_for_all_is_refused() -> None:
    """By torch, as it refuses `backward` and `zero_grad`; nothing is updated."""
    training = Training()
    training.backward()
    before = training.weight.detach().clone()
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="_update_outside_graph"):
        torch.compile(training.step, backend="eager", fullgraph=True)()
    assert torch.equal(training.weight, before)


@pytest.mark.parametrize("backend", backends(FAST_BACKENDS))
def test_norms_are_carried_from_step_to_step(backend: str) -> None:
    """None is taken by a pass over the weights: each step uses that of the weights before an unseen write."""
    ours, theirs = Training(backend), Training(backend)
    step, _ = compiled(ours.step)
    for turn in range(6):
        for training, run in ((ours, step), (theirs, theirs.step)):
            training.backward()
            if turn:
                training.weight.data.mul_(1.5)
            run()
            training.optimizer.zero_grad()
    reports = [training.optimizer.layer_report() for training in (ours, theirs)]
    assert [[row.stale_steps for row in report] for report in reports] == [[5, 0]] * 2
    assert bits(ours.weight) == bits(theirs.weight)


def test_graphs_know_their_optimizer_and_their_parameters() -> None:
    """Two optimizers of one class, new parameters, and an error in a step."""
    first, second = Training(), Training()
    run, _ = compiled(lambda training: training.optimizer.step())
    before = second.weight.detach().clone()
    for training in (first, second):
        training.backward()
    run(first)
    assert torch.equal(second.weight, before)
    run(second)
    assert_same(first, second)

    extra = [nn.Parameter(torch.ones(2, 4, device=DEVICE)) for _ in range(2)]
    for training, param, step in ((first, extra[0], run), (second, extra[1], lambda t: t.optimizer.step())):
        training.optimizer.add_param_group({"params": [("extra", param)]})
        param.grad = torch.ones_like(param)
        step(training)
    assert torch.equal(*extra) and not torch.equal(extra[0], torch.ones_like(extra[0]))

    first.optimizer.param_groups[0]["momentum"] = "high"
    before = first.weight.detach().clone()
    with pytest.raises(TypeError, match="momentum of parameter group 0: got 'high'"):
        run(first)
    assert torch.equal(first.weight, before)
    assert first.weight.grad is not None


def test_more_optimizers_than_torch_compiles_a_function_for() -> None:
    run, _ = compiled(lambda training: training.step())
    for _ in range(torch._dynamo.config.cache_size_limit + 2):
        ours, theirs = Training(), Training()
        for training, step in ((ours, run), (theirs, lambda training: training.step())):
            training.backward()
            step(training)
        assert_same(ours, theirs)


def write_and_step(training: Training) -> None:
    with torch.no_grad():
        training.weight.mul_(2)
    training.step()


def step_twice(training: Training) -> None:
    training.step()
    training.step()


@pytest.mark.parametrize("body", [write_and_step, step_twice])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", INDUCTOR])
def test_what_is_written_before_a_step_is_stepped_from(compiler: str, body: Callable[[Training], None]) -> None:
    ours, theirs = Training(), Training()
    run, _ = compiled(lambda: body(ours), compiler)
    for _ in range(2):
        for training, step in ((ours, run), (theirs, lambda: body(theirs))):
            training.backward()
            step()
            training.optimizer.zero_grad()
        assert_same(ours, theirs)


@pytest.mark.parametrize("backend", backends(["native", "foreach"]))
def test_parameters_that_begin_to_share_memory(backend: str) -> None:
    """Each is updated from what the one before it left."""
    params = [nn.Parameter(torch.ones(3, 4, device=DEVICE)) for _ in range(2)]
    optimizer = ScaleAmendedSGD([{"params": params, "amend": False}], lr=0.1, backend=backend)
    step, _ = compiled(optimizer.step)
    for param in params:
        param.grad = torch.ones_like(param)
    step()
    params[1].data = params[0].data
    step()
    assert params[0].detach().flatten().tolist() == pytest.approx([0.7] * 12)


def test_copies_and_checkpoints_compile_nothing_anew() -> None:
    ours, theirs = copy.deepcopy(Training()), Training()
    run, counter = compiled(ours.step)
    compilations = []
    for _ in range(3):
        for training, step in ((ours, run), (theirs, theirs.step)):
            training.backward()
            step()
            training.optimizer.load_state_dict(training.optimizer.state_dict())
            training.optimizer.zero_grad()
        assert_same(ours, theirs)
        compilations.append(counter.frame_count)
    assert compilations == [2] * 3
