"""A network as a graph of operators, by torch.export, with the value of every node for one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from sasgd_fused.local.arguments import Inputs, arguments_of
from sasgd_fused.local.shares import check_output


class Graph(NamedTuple):
    """What a network computes from one batch.

    Attributes:
        nodes: in the order in which they are computed; none writes into the value of another.
        values: of every node, detached.
        active: the nodes that the inputs have a part in.
        weights: of every other node, the parameters that have a part in it.
        output: the node of the output.
    """

    nodes: list[fx.Node]
    values: dict[fx.Node, Any]
    active: set[fx.Node]
    weights: dict[fx.Node, frozenset[Tensor]]
    output: fx.Node


def export_graph(model: nn.Module, inputs: Inputs) -> Graph:
    """Exports a network in its own mode, and computes the values of all nodes.

    Raises:
        Exception: what its own forward raises.
        RuntimeError: torch.export does not take the network.
        TypeError: its output is not one floating tensor.
    """
    program, arguments = _export(model, inputs)
    held = dict(model.named_parameters(remove_duplicate=False))
    values: dict[fx.Node, Any] = {}
    active: set[fx.Node] = set()
    weights: dict[fx.Node, frozenset[Tensor]] = {}
    given = iter(zip(program.graph_signature.input_specs, _placeholder_values(program, arguments), strict=True))
    nodes = [node for node in program.graph.nodes if node.op != "output"]
    with torch.no_grad():
        for node in nodes:
            own: frozenset[Tensor] = frozenset()
            if node.op == "placeholder":
                spec, values[node] = next(given)
                if spec.kind == InputKind.USER_INPUT:
                    active.add(node)
                elif spec.kind == InputKind.PARAMETER and spec.target is not None:
                    own = frozenset([held[spec.target]])
            elif node.op == "get_attr":
                values[node] = attrgetter(str(node.target))(program.graph_module)
            else:
                values[node] = compute(node, values.__getitem__)
            if active.intersection(node.all_input_nodes):
                active.add(node)
            elif node not in active:
                weights[node] = own.union(*(weights[source] for source in node.all_input_nodes))
    (result,) = (node for node in program.graph.nodes if node.op == "output")
    outputs = [
        source
        for spec, source in zip(program.graph_signature.output_specs, result.args[0], strict=True)
        if spec.kind.name == "USER_OUTPUT"
    ]
    wanted = "one floating tensor; measured_factors picks one with `output=`"
    if len(outputs) != 1:
        raise TypeError(f"model: its output has {len(outputs)} parts, want {wanted}")
    check_output(values.get(outputs[0]), wanted)
    return Graph(nodes, values, active, weights, outputs[0])


def compute(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    """Calls a node's operator with the values of other nodes."""
    args: Any = fx.node.map_arg(node.args, value_of)
    kwargs: Any = fx.node.map_arg(node.kwargs, value_of)
    operator: Any = node.target
    if operator_name(node) == "copy":  # has no derivative
        return args[1].to(args[0].dtype).expand_as(args[0])
    return operator(*args, **kwargs)


def operator_name(node: fx.Node) -> str:
    """Returns the name of a node's operator without that of its overload: ``"conv2d"``, ``"add"``."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def _export(model: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, list[Any]]:
    args, kwargs = arguments_of(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, args, kwargs, strict=False)
            # Decomposes nothing: writes in place become operators that return what they wrote.
            program = program.run_decompositions({})
        except Exception as error:
            with torch.no_grad():
                model(*args, **kwargs)  # raises what is an error of its own
            raise RuntimeError(
                f"model: torch.export does not take {type(model).__name__} ({type(error).__name__}: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}); "
                "want measured_factors, which needs no graph"
            ) from error
    return program, tree_leaves((args, kwargs))


def _placeholder_values(program: ExportedProgram, arguments: list[Any]) -> Iterator[Any]:
    leaves = iter(arguments)
    constants: Mapping[str, Any] = program.constants
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            value = next(leaves)
        else:
            value = program.state_dict.get(spec.target, constants.get(spec.target))
        yield value.detach() if isinstance(value, Tensor) else value
