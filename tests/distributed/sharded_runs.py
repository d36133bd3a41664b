"""One small training run, whole or sharded in several ways, for the tests that start several processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sasgd_fused import ScaleAmendedSGD, parameter_groups

HYPERPARAMETERS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}
RULES: dict[str, dict[str, Any]] = {
    "track": {},
    "freeze": {"norms": "freeze", "head": "plain", "decay": "shape"},
    "product": {"factors": "product"},
    "relative": {"scale": "relative"},
}
BATCH = 8
needs_fsdp = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason=f"FSDP2 of torch {torch.__version__} runs on GPUs alone"
)


def marks_of(layout: str) -> list[pytest.MarkDecorator]:
    """Marks for a test of a layout."""
    return [] if layout == "tensor parallel" else [needs_fsdp]


def network() -> nn.Sequential:
    """7 and 5 rows are dealt out unevenly; of 3 rows some of four ranks get none."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))


def even_network() -> nn.Sequential:
    """Tensor parallelism wants what it cuts to be even."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))


def shard(model: nn.Sequential, layout: str) -> tuple[int, int]:
    """Deals the parameters out over all ranks; returns which part of a batch this rank takes, of how many."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    rank, ranks = dist.get_rank(), dist.get_world_size()
    styles = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    if layout == "tensor parallel":
        parallelize_module(model, init_device_mesh("cpu", (ranks,)), styles)
        return 0, 1
    if layout == "both":
        mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, mesh["tensor"], styles)
        fully_shard(model, mesh=mesh["data"])
        return rank // (ranks // 2), 2
    mesh = init_device_mesh("cpu", (ranks,))
    if layout == "hybrid":
        mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return rank, ranks


def optimizer_for(model: nn.Module, rule: str, **options: Any) -> ScaleAmendedSGD:
    return ScaleAmendedSGD(parameter_groups(model), **HYPERPARAMETERS, **RULES[rule], **options)


def backward(model: nn.Module, step: int, part: int = 0, parts: int = 1) -> None:
    """Of one part of a batch; the mean over equal parts is the mean over all."""
    generator = torch.Generator().manual_seed(step)
    inputs, targets = (torch.randn((BATCH, width), generator=generator) for width in (6, 3))
    (model(inputs.chunk(parts)[part]) - targets.chunk(parts)[part]).square().mean().backward()


def train(model: nn.Module, optimizer: Optimizer, steps: range, part: int = 0, parts: int = 1) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step, part, parts)
        optimizer.step()


def whole(tensor: Any) -> Tensor:
    """The same tensor on every rank."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().clone()


def outcome(model: nn.Module, optimizer: ScaleAmendedSGD) -> dict[str, Any]:
    """Weights, state and report, all of them whole."""
    params = list(model.parameters())
    optimizer.state_dict()  # brings the state up to date
    return {
        "weights": [whole(param) for param in params],
        "momentum": [whole(optimizer.state[param]["momentum_buffer"]) for param in params],
        "frozen norms": [optimizer.state[param].get("row_norm_sq") for param in params],
        "gradient norms": [optimizer.state[param].get("gradient_norm_sq") for param in params],
        "norms": [row.row_norm_sq for row in optimizer.layer_report()],
        "stale": [row.stale_steps for row in optimizer.layer_report()],
    }
