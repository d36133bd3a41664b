"""The fixed part of a step: tensors, blocks and factors of one device; made once, remade when parameters change."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.blocks import Block, find_blocks, parameter_name
from sasgd_fused.factors import backward_factors, effective_columns
from sasgd_fused.options import Options
from sasgd_fused.storage import Storage, storage_of

Signature = tuple[torch.Size, torch.dtype, torch.device]
State = MutableMapping[Tensor, dict[str, Any]]
SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class PlannedBlock:
    """A block as a backend sees it.

    Attributes:
        param: index into `StepPlan.params`.
        block: its name, rows and true columns.
        columns: effective columns of equation (23), see `factors.effective_columns`.
        backward_factor: m_b.
        scaled: whether the gradient is scaled (``amend`` is set and it is not a plain head).
    """

    param: int
    block: Block
    columns: float
    backward_factor: float
    scaled: bool


@dataclass(frozen=True)
class StepPlan:
    """What the steps of one optimizer on one device have in common.

    Attributes:
        params: every parameter on the device, in the order of the groups.
        names: their names, for messages.
        group_of: the parameter group of each.
        blocks: the blocks among them, input first.
        options: the optimizer's options.
        signatures: shape, dtype and device of each parameter.
        storage: how each is stored.
    """

    device: torch.device
    params: list[Tensor]
    names: list[str]
    group_of: list[int]
    blocks: list[PlannedBlock]
    options: Options
    signatures: list[Signature]
    storage: list[Storage]

    @property
    def has_masters(self) -> bool:
        """Whether any parameter has a float32 master."""
        return any(storage.has_master for storage in self.storage)

    @property
    def is_ordinary(self) -> bool:
        """Whether weights and momentum have the parameters' dtypes and are rounded to nearest."""
        return all(storage.is_ordinary for storage in self.storage)

    def is_current(self) -> bool:
        """Whether the parameters still have the shapes, dtypes and device that the plan was made for."""
        return [_signature(param) for param in self.params] == self.signatures

    def gather_gradients(self) -> list[Tensor | None]:
        """Takes each parameter's gradient, or None, after checking all of them.

        Raises:
            ValueError: a gradient is sparse, complex, integer, on another device, or of another shape; the message
                names the parameter.
        """
        grads = [param.grad for param in self.params]
        for param, grad, name in zip(self.params, grads, self.names, strict=True):
            if grad is None:
                continue
            if grad.layout != torch.strided:
                raise ValueError(f"gradient of {name}: got layout {grad.layout}, want a dense tensor")
            if not grad.is_floating_point():
                raise ValueError(f"gradient of {name}: got {grad.dtype}, want a real floating-point dtype")
            if grad.device != param.device:
                raise ValueError(f"gradient of {name}: got device {grad.device}, want the parameter's, {param.device}")
            if grad.shape != param.shape:
                raise ValueError(
                    f"gradient of {name}: got shape {tuple(grad.shape)}, want the parameter's, {tuple(param.shape)}"
                )
        return grads

    def check_momentum(self, state: State) -> None:
        """Checks the momentum buffers that there are.

        Raises:
            ValueError: a buffer is sparse, or does not have its parameter's shape or device; the message names the
                parameter.
        """
        self._check_state(state, "momentum_buffer")

    def check_masters(self, state: State) -> None:
        """Checks the master weights that there are.

        Raises:
            ValueError: as `check_momentum` does.
        """
        self._check_state(state, "master_weight")

    def drop_masters(self, state: State) -> None:
        """Removes the masters of parameters that have none any more, as after model.float()."""
        for param, storage in zip(self.params, self.storage, strict=True):
            if not storage.has_master and param in state:
                state[param].pop("master_weight", None)

    def _check_state(self, state: State, key: str) -> None:
        for param, name in zip(self.params, self.names, strict=True):
            kept = state.get(param, {}).get(key)
            if kept is None:
                continue
            if kept.shape != param.shape:
                raise ValueError(
                    f"{key} of {name}: got shape {tuple(kept.shape)}, want the parameter's, {tuple(param.shape)}"
                )
            if kept.device != param.device or kept.layout != torch.strided:
                raise ValueError(
                    f"{key} of {name}: got a {kept.layout} tensor on {kept.device}, "
                    f"want a dense one on the parameter's device, {param.device}"
                )


class Structure:
    """What plans are made from and anybody may change in the groups at any time.

    Args:
        groups: the optimizer's parameter groups as they are now.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self._params = [list(group["params"]) for group in groups]
        self._options = [copy.deepcopy(_block_options(group)) for group in groups]

    def holds_for(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether groups have the same parameters, and the same options that decide on blocks."""
        return len(groups) == len(self._params) and all(
            len(params) == len(group["params"])
            and all(map(is_, params, group["params"]))
            and options == _block_options(group)
            for params, options, group in zip(self._params, self._options, groups, strict=True)
        )


def make_plans(
    groups: Sequence[Mapping[str, Any]],
    options: Options,
    initial_groups: int,
    head: Tensor | None,
    head_rows: int,
    apart: bool = False,
) -> list[StepPlan]:
    """Makes one plan for every device that holds parameters.

    Args:
        groups: the optimizer's parameter groups.
        options: the optimizer's options.
        initial_groups: how many groups there were at construction.
        head: the parameter of the last block at construction; None if there were no blocks.
        head_rows: its rows then, n_B.
        apart: makes one for every parameter instead, so that each can be updated by itself.
    """
    blocks = find_blocks(groups, initial_groups)
    block_params = [groups[block.group]["params"][block.position] for block in blocks]
    output_width = options.output_width or head_rows
    factors = dict(zip(blocks, backward_factors(blocks, block_params, options, output_width), strict=True))

    parts: dict[Any, list[tuple[int, int]]] = {}
    storage: dict[tuple[int, int], Storage] = {}
    for index, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            name = parameter_name(group, index, position)
            given = options.rounding_places or {}
            stream_place = given.get(param, len(given) + len(storage))
            storage[index, position] = storage_of(param.dtype, options, name, stream_place)
            parts.setdefault((index, position) if apart else param.device, []).append((index, position))
    plans = []
    all_places = list(parts.values())
    if apart:  # then reports go from plan to plan: blocks from input to output
        order_of_blocks = {(block.group, block.position): place for place, block in enumerate(blocks)}
        all_places.sort(key=lambda places: order_of_blocks.get(places[0], -1))
    for places in all_places:
        params = [groups[index]["params"][position] for index, position in places]
        names = [parameter_name(groups[index], index, position) for index, position in places]
        order = {place: k for k, place in enumerate(places)}
        here = [block for block in blocks if (block.group, block.position) in order]
        columns = effective_columns(here, [factors[block] for block in here])
        planned = []
        for block, effective in zip(here, columns, strict=True):
            k = order[block.group, block.position]
            scaled = block.amend and not (params[k] is head and options.head == "plain")
            planned.append(PlannedBlock(k, block, effective, factors[block], scaled))
        group_of = [index for index, _ in places]
        signatures = [_signature(param) for param in params]
        stored = [storage[place] for place in places]
        plans.append(StepPlan(params[0].device, params, names, group_of, planned, options, signatures, stored))
    return plans


def check_distinct(params: Sequence[Any]) -> None:
    """Checks that no tensor, named or not, comes twice.

    Raises:
        ValueError: one does; the message names it.
    """
    seen = set()
    for position, param in enumerate(params):
        name, tensor = param if isinstance(param, tuple) else (f"parameter {position}", param)
        if id(tensor) in seen:
            raise ValueError(f"params: {name} comes twice in one group, want every parameter once")
        seen.add(id(tensor))


def check_parameter(param: Tensor, name: str) -> None:
    """Checks that a parameter can be updated.

    Raises:
        ValueError: it is sparse, complex, integer, of an unsupported precision, or its elements share memory.
    """
    if param.layout != torch.strided:
        raise ValueError(f"params: {name} has layout {param.layout}, want a dense tensor")
    if param.dtype not in SUPPORTED_DTYPES:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED_DTYPES)
        raise ValueError(f"params: {name} is {param.dtype}, want one of {wanted}")
    strides = zip(param.stride(), param.shape, strict=True)
    if param.numel() and any(stride == 0 and size > 1 for stride, size in strides):
        raise ValueError(f"params: {name} is an expanded tensor, want one whose elements have memory of their own")


def _block_options(group: Mapping[str, Any]) -> tuple[Any, ...]:
    return group["amend"], group["rows"], group["columns"]


def _signature(param: Tensor) -> Signature:
    return param.shape, param.dtype, param.device
