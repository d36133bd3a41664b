"""The Jacobian of a block at one point, as products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sasgd_fused.local.arguments import check_model, check_values, unwrapped
from sasgd_fused.local.still import devices_of, still, without_autocast


@dataclass(frozen=True, eq=False, repr=False)
class Jacobian:
    """J = ∂F/∂x of a block F at a point x, and the curvature of F there. Nothing is formed, only products.

    `push` uses that u ↦ Jᵀu is linear: its derivative by u along v is J v. So it takes any operator that can be
    differentiated twice, and no forward mode. The graph is kept; a product after a weight has been changed in place
    raises torch's RuntimeError.

    Attributes:
        point: x.
        value: F(x).
    """

    point: Tensor
    value: Tensor
    _seed: Tensor
    _pulled: Tensor

    def __repr__(self) -> str:
        return f"Jacobian({tuple(self.point.shape)} → {tuple(self.value.shape)}, {self.point.dtype})"

    def push(self, tangent: Tensor) -> Tensor:
        """Returns J v, in the shape of the value, of v in the shape of the point."""
        return _grad(self._pulled, self._seed, tangent)

    def pull(self, cotangent: Tensor) -> Tensor:
        """Returns Jᵀ u, in the shape of the point, of u in the shape of the value."""
        return _grad(self.value, self.point, cotangent)

    def bend(self, weights: Tensor, tangent: Tensor) -> Tensor:
        """Returns Σ_i r_i ∇²F_i v, with r in the shape of the value and v in that of the point."""
        with without_autocast([self.point.device]):
            (slope,) = torch.autograd.grad(self.value, self.point, weights, create_graph=True)
        return _grad(slope, self.point, tangent)

    def dense(self) -> Tensor:
        """Returns J as a matrix, with a row for each element of the value."""
        if self.value.numel() <= self.point.numel():
            return torch.stack([self.pull(unit).flatten() for unit in units(self.value)])
        return torch.stack([self.push(unit).flatten() for unit in units(self.point)], dim=1)


def units(like: Tensor) -> Iterator[Tensor]:
    """Yields the unit vectors, each in the shape given."""
    for place in range(like.numel()):
        unit = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
        unit[place] = 1
        yield unit.reshape(like.shape)


def jacobian_of(value: Tensor, point: Tensor) -> Jacobian:
    """Returns the Jacobian of a value that was computed from a point with a graph.

    Raises:
        RuntimeError: an operator on the way cannot be differentiated twice.
    """
    seed = torch.zeros_like(value, requires_grad=True)
    if not value.requires_grad:
        return Jacobian(point, value, seed, torch.zeros_like(point, requires_grad=False))
    (pulled,) = torch.autograd.grad(value, point, seed, create_graph=True, materialize_grads=True)
    _check_twice_differentiable(pulled)
    return Jacobian(point, value, seed, pulled)


def _check_twice_differentiable(pulled: Tensor) -> None:
    """Refuses what ``once_differentiable`` marks, whose part torch leaves out of a second derivative without a word."""
    waiting: list[Any] = [pulled.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("got an operator that is marked once_differentiable, want one with a second derivative")
        waiting.extend(before for before, _ in node.next_functions)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Has forward runs make a graph, and keeps attention away from kernels that have no second derivative."""
    with torch.enable_grad(), sdpa_kernel([SDPBackend.MATH]):
        yield


def jacobian_at(block: nn.Module, inputs: Tensor, wrt: str) -> Jacobian:
    """Runs a block held still, and returns its Jacobian by its input or by one of its parameters.

    It is 0, and the value requires no gradient, if the output does not depend on that. Autocast is off.

    Args:
        block: any module that takes a floating tensor and returns one, or a tuple of which the first one counts.
        inputs: its input.
        wrt: "input", or a parameter's name.

    Raises:
        TypeError: there is no floating tensor in the output, or the derivative is by an input that is none.
        ValueError, RuntimeError: as `check_model` and `check_values`.
    """
    check_model(block)
    check_values(inputs)
    block = unwrapped(block)
    if wrt == "input" and not inputs.is_floating_point():
        raise TypeError(f"inputs: got {inputs.dtype}, want floating numbers, or wrt= a parameter")
    # Detached parameters take no part in the graph, and a frozen one can be the point.
    detached = {param: param.detach() for param in block.parameters()}
    if wrt == "input":
        point = inputs.detach().clone().requires_grad_()
    else:
        point = detached[block.get_parameter(wrt)].requires_grad_()
    # Each slot once, by the first name of its module: of one that has two names, functional_call would not put back
    # the weights (pytorch#164759).
    slots = {
        f"{prefix}.{name}".lstrip("."): detached[param]
        for prefix, module in block.named_modules()
        for name, param in module._parameters.items()
        if param is not None
    }
    with still(block), twice_differentiable(), without_autocast(devices_of(block, inputs)):
        # A block may write into its input.
        argument = point.clone() if wrt == "input" else inputs.detach().clone()
        value = floating_output(functional_call(block, slots, (argument,), tie_weights=False), type(block).__name__)
    return jacobian_of(value, point)


def floating_output(output: Any, name: str) -> Tensor:
    """Returns a block's output: a floating tensor, or the first one in a tuple or list.

    Raises:
        TypeError: it is neither.
    """
    tensors = [part for part in (output if isinstance(output, (tuple, list)) else [output]) if isinstance(part, Tensor)]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if floating:
        return floating[0]
    got = str(tensors[0].dtype) if tensors else type(output).__name__
    raise TypeError(f"{name}: got {got} as its output, want a floating tensor, or a tuple with one")


def parameter_name(block: nn.Module, wrt: str | nn.Parameter) -> str:
    """Returns "input" or the name of a parameter.

    Raises:
        ValueError: there is no such parameter.
    """
    named: Mapping[str, nn.Parameter] = dict(block.named_parameters(remove_duplicate=False))
    for name, param in named.items():
        if param is wrt or name == wrt:
            return name
    if isinstance(wrt, str) and wrt == "input":
        return wrt
    got = repr(wrt) if isinstance(wrt, str) else f"a {type(wrt).__name__}"
    raise ValueError(f"wrt: got {got}, want 'input' or a parameter of {type(block).__name__}: {', '.join(named)}")


def _grad(value: Tensor, point: Tensor, weights: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(point, requires_grad=False)
    with without_autocast([point.device]):
        (found,) = torch.autograd.grad(value, point, weights, retain_graph=True, materialize_grads=True)
    return found
