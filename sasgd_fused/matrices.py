"""Matrices: which parameters are a layer's weight, with how many rows and columns, and why others are not amended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn import Parameter
from torch.nn.utils import parametrize

from sasgd_fused.options import is_positive_int
from sasgd_fused.traced import matrices_in_graphs, matrix_in_trace

_LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# The last are those of Conv1D in transformers, whose weight is the transpose of a linear layer's.
_SIZES = (("out_features", "in_features"), ("out_channels", "in_channels"), ("nf", "nx"))
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_RECURRENT = {"RNNBase", "RNNCellBase", "LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"}


@dataclass(frozen=True)
class Role:
    """What a parameter is in the module that holds it.

    Attributes:
        rows: output units of a weight that is amended, else 0.
        columns: input units, likewise.
        why: why it is not amended.
        warn: whether the plain step is to be warned of: never, where it is a large part of the model, or always.
    """

    rows: int = 0
    columns: int = 0
    why: str = ""
    warn: Literal["never", "if large", "always"] = "never"


VECTOR = Role(why="a vector, or empty")
_EMBEDDING = Role(why="an embedding")
_FLAT = Role(why="flattened by FSDP1", warn="always")
_MISFIT = Role(why="in a shape that is not the layer's (sharded by FSDP1 or ZeRO-3, or packed)", warn="always")
_SPLIT = Role(why="parametrized otherwise than by one tensor of its size (weight_norm)", warn="always")


def find_roles(model: nn.Module) -> Iterator[tuple[Parameter, Role]]:
    """Yields every parameter and its role, in the order of the modules; a tied parameter comes again."""
    in_graphs = matrices_in_graphs(model)
    for module in (module for _, module in model.named_modules(remove_duplicate=False)):
        if isinstance(module, parametrize.ParametrizationList):
            continue  # came with the module whose weight it makes
        for slot, params in _slots(module).items():
            for param in params:
                if param in in_graphs:
                    matrix = in_graphs[param]
                    yield param, Role(*matrix) if matrix else _EMBEDDING
                else:
                    yield param, _role(module, slot, param, params)


def _slots(module: nn.Module) -> dict[str, list[Parameter]]:
    """Returns the tensors that make each of a module's own parameters, by its name when nothing is parametrized."""
    held = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    slots: dict[str, list[Parameter]] = {}
    for name, param in held.items():
        base = name[:-2]
        split = f"{base}_g" in held and f"{base}_v" in held and name[-2:] in ("_g", "_v")
        slots.setdefault(base if split else _without_orig(name), []).append(param)
    if parametrize.is_parametrized(module):
        parametrizations: Any = module.parametrizations
        for name, made_of in parametrizations.items():
            slots.setdefault(_without_orig(name), []).extend(made_of.parameters(recurse=False))
    return slots


def _without_orig(name: str) -> str:
    """Returns the name that a parameter had before pruning or torch.nn.utils.spectral_norm."""
    return re.sub(r"(_orig)+$", "", name)


def _role(module: nn.Module, slot: str, param: Parameter, params: list[Parameter]) -> Role:
    kinds = _kinds(module)
    if getattr(param, "_is_flat_param", False):
        return _FLAT
    if kinds & {"Embedding", "EmbeddingBag"} or re.search(r"(^|_)embed(ding)?s?(_table)?$", slot):
        return _EMBEDDING
    if len(params) > 1:
        return _SPLIT if param.dim() > 1 and param is max(params, key=Parameter.numel) else VECTOR
    if isinstance(module, _LAYERS) and slot == "weight":
        if not all(_sizes(module)):
            return VECTOR
        matrix = _layer_matrix(module, param)
        if param is not module._parameters.get("weight") and matrix != _sizes(module):
            return _SPLIT
        return Role(*matrix) if matrix else _MISFIT
    if "MultiheadAttention" in kinds and slot in _PROJECTIONS:
        return Role(*param.shape) if param.dim() == 2 else _MISFIT
    if slot == "weight" and (matrix := _custom_matrix(module, param) or matrix_in_trace(module, param)):
        return Role(*matrix)
    return _plain_role(kinds, slot, param)


def _plain_role(kinds: set[str], slot: str, param: Parameter) -> Role:
    if sum(size > 1 for size in param.shape) < 2:
        return VECTOR
    if param.shape[0] == 1:
        return Role(why="of leading dimension 1, as positions and class tokens are")
    if re.search(r"(^|_)bias(_|$)", slot):
        return Role(why="a bias")
    if any(re.search(r"norm(\dd)?$", kind, re.IGNORECASE) for kind in kinds):
        return Role(why="of a normalization")
    if kinds & _RECURRENT:
        return Role(why="recurrent", warn="always")
    if "Bilinear" in kinds:
        return Role(why="of nn.Bilinear", warn="always")
    return Role(why="of modules whose type does not tell rows and columns", warn="if large")


def _kinds(module: nn.Module) -> set[str]:
    """Returns the names of a module's classes; of a scripted or traced one that of the module it was made from."""
    return {cls.__name__ for cls in type(module).__mro__} | {str(getattr(module, "original_name", ""))}


def _sizes(module: Any) -> tuple[int, int]:
    return (
        (module.out_features, module.in_features)
        if isinstance(module, nn.Linear)
        else (module.out_channels, module.in_channels)
    )


def _layer_matrix(module: Any, param: Parameter) -> tuple[int, int] | None:
    if not param.is_floating_point():  # quantized and packed
        return _sizes(module)
    dims = 2 if isinstance(module, nn.Linear) else 2 + len(module.kernel_size)
    if param.dim() != dims or not param.numel():
        return None
    first, second = param.shape[:2]
    if isinstance(module, nn.Linear):
        return first, second
    return (second * module.groups, first) if module.transposed else (first, second * module.groups)


def _custom_matrix(module: nn.Module, param: Parameter) -> tuple[int, int] | None:
    """Returns the rows and columns that a module names, if its weight has just these sizes."""
    groups: Any = getattr(module, "groups", 1)
    if not is_positive_int(groups):
        return None
    for outputs, inputs in _SIZES:
        rows: Any = getattr(module, outputs, None)
        columns: Any = getattr(module, inputs, None)
        if not is_positive_int(rows) or not is_positive_int(columns):
            continue
        if param.dim() < 2 or (outputs == "out_features" and param.dim() > 2):
            continue
        if tuple(param.shape[:2]) in {(rows, columns // groups), (columns, rows // groups)}:
            return rows, columns
    return None
