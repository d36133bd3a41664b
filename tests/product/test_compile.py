"""A compiled training step does what it does uncompiled, in one graph where torch can make one, for any schedule."""

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
from tests.helpers import DEVICE, backends
from tests.tiers import thin

# Of torch's own, about the profiler and about dynamo itself.
pytestmark = pytest.mark.filterwarnings("ignore")
INDUCTOR = pytest.param("inductor", marks=pytest.mark.nightly)


class Training:
    """A model, its optimizer and schedule, and something else that reads the weights."""

    def __init__(self, backend: str, **options: Any) -> None:
        torch.manual_seed(0)
        self.inputs, self.labels = torch.randn(16, 4).to(DEVICE), torch.randint(0, 3, (16,)).to(DEVICE)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(DEVICE)
        self.model[2].bias.requires_grad_(False)  # it has no gradient
        self.optimizer = ScaleAmendedSGD(
            parameter_groups(self.model), lr=0.05, momentum=0.9, backend=backend, **options
        )
        self.average = self.model[0].weight.detach().clone()

    def lower(self) -> None:
        """As a schedule does."""
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.9

    def backward(self) -> Tensor:
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.labels)
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        """Others read the weights before and after, in the same graph."""
        weight = self.model[0].weight
        with torch.no_grad():
            before = weight * 2
        self.optimizer.step()
        with torch.no_grad():
            self.average.lerp_(weight + before, 0.5)

    def whole(self) -> Tensor:
        loss = self.backward()
        self.step()
        for param in self.model.parameters():
            param.grad = None
        return loss


def assert_same(ours: Training, theirs: Training) -> None:
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours.average, theirs.average)
    assert not any(row.stale_steps for row in ours.optimizer.layer_report())


def compiled(function: Callable[[], Any], compiler: str) -> tuple[Callable[[], Any], CompileCounterWithBackend]:
    """In one graph, or not at all; and what counts the compilations."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(compiler)
    return torch.compile(function, backend=counter, fullgraph=True), counter


@thin(slow=1)
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("options", [{}, {"norms": "freeze"}], ids=["track", "freeze"])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_the_optimizer_breaks_no_graph(compiler: str, options: dict[str, Any], backend: str) -> None:
    """The second compiler hands copies of the parameters to the step, and copies them back."""
    ours, theirs = Training(backend, **options), Training(backend, **options)
    step, counter = compiled(ours.step, compiler)
    for _ in range(5):
        for training, run in ((ours, step), (theirs, theirs.step)):
            training.backward()
            run()
            training.optimizer.zero_grad()
            training.lower()
        assert_same(ours, theirs)
    assert counter.frame_count == 1, "a new learning rate compiles nothing anew"


@pytest.mark.skipif(not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch cannot trace backward")
@pytest.mark.parametrize("compiler", ["aot_eager", INDUCTOR])
def test_a_whole_training_step_in_one_graph(compiler: str) -> None:
    """Backward too, where torch is told to trace it: then the gradients are not in the parameters when it steps."""
    ours, theirs = Training("foreach"), Training("foreach")
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        whole, counter = compiled(ours.whole, compiler)
        for _ in range(4):
            torch.testing.assert_close(whole(), theirs.whole())
            for training in (ours, theirs):
                training.lower()
    assert_same(ours, theirs)
    assert all(param.grad is None for param in ours.model.parameters())
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", backends())
def test_a_training_step_as_it_is_mostly_compiled(backend: str) -> None:
    """Torch itself breaks the graph at `zero_grad`, at `backward`, and at a step that a scheduler watches."""
    ours, theirs = Training(backend), Training(backend)
    schedules = [ExponentialLR(training.optimizer, 0.9) for training in (ours, theirs)]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def whole(training: Training) -> None:
        training.optimizer.zero_grad()
        training.backward()
        training.step()

    run = torch.compile(lambda: whole(ours), backend="eager")
    graphs = []
    for _ in range(6):
        run()
        whole(theirs)
        for schedule in schedules:
            schedule.step()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert_same(ours, theirs)
    assert graphs[2:] == graphs[2:3] * 4, "a new learning rate compiles nothing anew"
    for told in torch._dynamo.utils.counters["graph_break"]:
        assert re.search(r"Optimizer.zero_grad|Tensor.backward|optim/lr_scheduler.py", told), told


def test_graphs_know_their_optimizer_and_their_parameters() -> None:
    """Two optimizers of one class, new parameters, and an error in a step."""
    first, second = Training("foreach"), Training("foreach")
    torch._dynamo.reset()
    run = torch.compile(lambda training: training.optimizer.step(), backend="eager", fullgraph=True)
    before = second.model[0].weight.detach().clone()
    for training in (first, second):
        training.backward()
    run(first)
    assert torch.equal(second.model[0].weight, before)
    run(second)
    assert_same(first, second)

    extra = [nn.Parameter(torch.ones(2, 4, device=DEVICE)) for _ in range(2)]
    for training, param, step in ((first, extra[0], run), (second, extra[1], lambda t: t.optimizer.step())):
        training.optimizer.add_param_group({"params": [("extra", param)]})
        param.grad = torch.ones_like(param)
        step(training)
    assert torch.equal(*extra) and not torch.equal(extra[0], torch.ones_like(extra[0]))

    first.optimizer.param_groups[0]["momentum"] = "high"
    before = first.model[0].weight.detach().clone()
    with pytest.raises(TypeError, match="momentum of parameter group 0: got 'high'"):
        run(first)
    assert torch.equal(first.model[0].weight, before)
    assert first.model[0].weight.grad is not None


def write_and_step(training: Training) -> None:
    with torch.no_grad():
        training.model[0].weight.mul_(2)
    training.step()


def step_twice(training: Training) -> None:
    training.step()
    training.step()


@pytest.mark.parametrize("body", [write_and_step, step_twice])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", INDUCTOR])
def test_what_the_graph_has_written_before_a_step_is_stepped_from(
    compiler: str, body: Callable[[Training], None]
) -> None:
    ours, theirs = Training("foreach"), Training("foreach")
    run, _ = compiled(lambda: body(ours), compiler)
    for _ in range(2):
        for training, step in ((ours, run), (theirs, lambda: body(theirs))):
            training.backward()
            step()
            training.optimizer.zero_grad()
        assert_same(ours, theirs)


def test_copies_and_checkpoints_compile_nothing_anew() -> None:
    ours, theirs = Training("foreach"), Training("foreach")
    ours = copy.deepcopy(ours)
    run, counter = compiled(ours.step, "eager")
    for _ in range(3):
        for training, step in ((ours, run), (theirs, theirs.step)):
            training.backward()
            step()
            training.optimizer.load_state_dict(training.optimizer.state_dict())
            training.optimizer.zero_grad()
        assert_same(ours, theirs)
    assert counter.frame_count == 1


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch has no word for it")
def test_no_cuda_graph_holds_a_step() -> None:
    """A replay would run nothing of the host's part."""
    assert torch.Tag.cudagraph_unsafe in torch.ops.sasgd_fused.step.default.tags
