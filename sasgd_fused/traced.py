"""Rows and columns of weights whose modules have lost their types: torch.jit.trace, torch.export and torch.fx."""

from __future__ import annotations

import re
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.nn import Parameter


def matrix_in_trace(module: nn.Module, param: Parameter) -> tuple[int, int] | None:
    """Returns the rows and columns of the weight of a traced linear layer or convolution.

    Args:
        module: holds the weight.
        param: the weight.

    Returns:
        None where the module was not traced, or its graph is not that of one linear layer or convolution.
    """
    if not isinstance(module, torch.jit.ScriptModule):
        return None
    if not module._c._has_method("forward"):  # called by the module that holds it
        return _matrix(param, False, 1) if module.original_name == "NonDynamicallyQuantizableLinear" else None
    nodes = [node for node in module.graph.nodes() if node.kind() in ("aten::linear", "aten::_convolution")]
    if len(nodes) != 1:
        return None
    if nodes[0].kind() == "aten::linear":
        return _matrix(param, False, 1)
    inputs: list[Any] = list(nodes[0].inputs())
    return _matrix(param, inputs[6].toIValue(), inputs[8].toIValue())


def matrices_in_graphs(model: nn.Module) -> dict[Parameter, tuple[int, int] | None]:
    """Returns the rows and columns of the weights of linear layers and convolutions in torch.fx graphs.

    None stands for the weight of an embedding.
    """
    matrices: dict[Parameter, tuple[int, int] | None] = {}
    for module in model.modules():
        graph = vars(module).get("_graph", vars(module).get("graph"))
        for node in graph.nodes if isinstance(graph, fx.Graph) else ():
            name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
            operator = re.fullmatch(r"(linear|conv\dd|conv_transpose\dd|embedding)(\.\w+)?", name)
            held = [arg for arg in node.args[:2] if isinstance(arg, fx.Node) and arg.op == "get_attr"]
            if operator is None or not held:
                continue
            param = attrgetter(str(held[-1].target))(module)
            if operator[1] == "embedding":
                matrices.setdefault(param, None)
                continue
            groups: Any = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
            if matrix := _matrix(param, "transpose" in operator[1], groups):
                matrices[param] = matrix
    return matrices


def _matrix(param: Parameter, transposed: bool, groups: int) -> tuple[int, int] | None:
    if param.dim() < 2 or not param.numel():
        return None
    first, second = param.shape[:2]
    return (second * groups, first) if transposed else (first, second * groups)
