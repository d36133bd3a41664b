"""Back-matching: back-propagation as a sequence of small problems, one for each block, whose solver can be chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sasgd_fused.local.arguments import check_scalar, check_values, unwrapped
from sasgd_fused.local.capture import is_sequential, parts
from sasgd_fused.local.jacobian import Jacobian, floating_output, jacobian_of, twice_differentiable
from sasgd_fused.options import is_positive_int


@dataclass(frozen=True, eq=False)
class BlockLoss:
    """The back-matching loss of one block: ℓ(z) = ½ ‖d + F(z⁰) − F(z)‖² (5).

    Attributes:
        index: which block it is, counted from 0 at the input.
        block: its module.
        displacement: d, wanted at its output, in the shape of the output.
        step: −∂ℓ/∂z = Jᵀd, the gradient step of size 1 (4), in the shape of the input.
        jacobian: J = ∂F/∂z, with `push` and `pull`; `jacobian.point` is z⁰, `jacobian.value` F(z⁰).
    """

    index: int
    block: nn.Module
    displacement: Tensor
    step: Tensor
    jacobian: Jacobian


# Takes a block's loss and returns the displacement of its input.
Solver = Callable[[BlockLoss], Tensor]


@dataclass(frozen=True, eq=False)
class BackMatching:
    """What one backward run of Procedure 1 gives.

    Attributes:
        loss: of the network, detached.
        gradients: ∂ℓ_b/∂W_b of each parameter that has one and requires it; of a parameter in several blocks the sum.
        displacements: d_0 … d_B, so B + 1 of them, d_b being wanted at the output of block b, and d_0 at the network's
            input; None for an input of integers.
        remaining: for b = 1 … B, so B of them, what the solver has left of the back-matching loss of block b, by the
            block's derivative at z⁰: ‖d_b − J d_{b-1}‖² / ‖d_b‖². 0 is a perfect match, more than 1 worse than no step;
            NaN where d_b is 0, or for an input of integers.
    """

    loss: Tensor
    gradients: dict[nn.Parameter, Tensor]
    displacements: tuple[Tensor | None, ...]
    remaining: tuple[float, ...]

    def __repr__(self) -> str:
        left = ", ".join(f"{fraction:.4g}" for fraction in self.remaining)
        return f"BackMatching(loss={float(self.loss):.4g}, remaining=({left}))"


def one_step(loss: BlockLoss) -> Tensor:
    """Is the solver of back-propagation: one gradient step of size 1 (4)."""
    return loss.step


def gradient_steps(count: int) -> Solver:
    """Returns a solver that takes several gradient steps of size 1, with the block's derivative as it is at z⁰.

    From d_z = 0, `count` times::

        d_z ← d_z + Jᵀ (d − J d_z)

    It converges to a best match where the largest eigenvalue of JᵀJ is below 2, and else grows without limit.

    Raises:
        ValueError: `count` is not a positive integer.
    """
    if not is_positive_int(count):
        raise ValueError(f"count: got {count!r}, want a positive integer")

    def solver(loss: BlockLoss) -> Tensor:
        found = loss.step
        for _ in range(count - 1):
            found = found + loss.jacobian.pull(loss.displacement - loss.jacobian.push(found))
        return found

    return solver


def exact(damping: float = 0.0, iterations: int = 1000) -> Solver:
    """Returns a solver that minimizes the loss, with the block's derivative as it is at z⁰.

    That is::

        d_z = argmin ½ ‖d − J d_z‖² + ½ damping ‖d_z‖² = (JᵀJ + damping I)⁻¹ Jᵀ d

    by conjugate gradients (CGLS). Without damping it is the shortest of the best matches. It ends when the gradient of
    what is minimized has fallen to ten roundings of what it was, or after `iterations`, which may be too few where J is
    badly conditioned. `damping` is in units of the eigenvalues of JᵀJ: directions whose eigenvalue is below it are
    hardly matched.

    Raises:
        ValueError: `damping` is negative or not finite, or `iterations` is not a positive integer.
    """
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping: got {damping}, want a finite number, at least 0")
    if not is_positive_int(iterations):
        raise ValueError(f"iterations: got {iterations!r}, want a positive integer")

    def solver(loss: BlockLoss) -> Tensor:
        jacobian = loss.jacobian
        found, residual = torch.zeros_like(loss.step), loss.displacement
        direction = slope = loss.step
        size = first = _norm_sq(slope)
        for _ in range(iterations):
            if size <= first * (10 * torch.finfo(slope.dtype).eps) ** 2:
                break
            pushed = jacobian.push(direction)
            length = size / (_norm_sq(pushed) + damping * _norm_sq(direction))
            found, residual = found + length * direction, residual - length * pushed
            slope = jacobian.pull(residual) - damping * found
            size, before = _norm_sq(slope), size
            direction = slope + size / before * direction
        return found

    return solver


def back_matching(
    blocks: Iterable[nn.Module],
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    solver: Solver = one_step,
) -> BackMatching:
    """Runs the paper's Procedure 1 once: a loss is matched backward, block by block.

    Forward, z_0 is the input and z_b = F_b(W_b, z_{b-1}); d_B = −∂loss/∂z_B. Then, for b = B … 1, with everything at
    the weights and signals of this forward run::

        ℓ_b(W_b, z_{b-1}) = ½ ‖d_b + z_b − F_b(W_b, z_{b-1})‖²                        (5)
        gradient of W_b   = ∂ℓ_b/∂W_b, for a step of any size                         (3)
        d_{b-1}           = what the solver finds; one step of size 1: −∂ℓ_b/∂z_{b-1} (4)

    where ‖·‖² is summed over the batch and all units.

    Proposition 1: with the default solver the gradients are those of back-propagation, here bit for bit. In the paper
    z_b^{k+½} = z_b^k + d_b is the target in step k, and k counts steps, not samples. The displacement d_b is carried in
    its place because a target cancels in float32: gradients are small beside signals.

    This is a way to see where a signal is lost, and what becomes of training when one block's step is solved better; no
    faster way to train. It takes a few times as long as back-propagation. Each block is run once, in its own mode:
    running statistics follow and dropout draws, as in any forward run. No ``.grad`` is written. Attention takes the
    kernel of ``SDPBackend.MATH``, the one that can be differentiated twice.

    Args:
        blocks: modules that take a floating tensor and return one, or a tuple of which the first one goes on; or an
            ``nn.Sequential``, whose children they are. `chain` unpacks nested ones too.
        inputs: z_0; integers are possible, as for an embedding, and get no displacement.
        loss: takes z_B and returns a scalar.
        solver: `one_step`, `gradient_steps`, `exact`, or any function of a `BlockLoss`, which can tell blocks apart by
            its `index`.

    Raises:
        TypeError: a block is no module, or does not return a floating tensor; the inputs or what the solver returns
            are no tensor; the solver is `exact` or `gradient_steps` itself.
        ValueError: there are no blocks, or a module that is no ``nn.Sequential``; the loss is no scalar, or constant;
            the solver's displacement has not the shape of z; inputs are empty, on the meta device, or have NaN.
        RuntimeError: an operator in a block cannot be differentiated twice, which `remaining` needs.

    Example:
        >>> found = back_matching(model, images, lambda output: F.cross_entropy(output, labels), solver=exact(1e-3))
        >>> for param, gradient in found.gradients.items():
        ...     param.grad = gradient
        >>> optimizer.step()
    """
    factories: tuple[object, ...] = (exact, gradient_steps)
    if solver in factories:
        raise TypeError(f"solver: got {solver.__name__}, want what it returns: solver={solver.__name__}(...)")
    modules = _children(blocks) if isinstance(blocks, nn.Module) else list(blocks)
    if not modules:
        raise ValueError("blocks: got none, want at least one module")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(f"blocks: got a {type(module).__name__}, want modules")
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs: got a {type(inputs).__name__}, want a tensor")
    check_values(inputs)
    with twice_differentiable():
        runs: list[tuple[Tensor, Tensor]] = []
        signal = inputs
        for index, module in enumerate(modules):
            point = signal.detach().requires_grad_(signal.is_floating_point())
            # A block may write into its input, which has to stay the point.
            value = floating_output(module(point.clone()), f"block {index}, {type(module).__name__}")
            runs.append((point, value))
            signal = value
        output = signal.detach().requires_grad_()
        found = check_scalar(loss(output))
        (slope,) = torch.autograd.grad(found, output, materialize_grads=True)
    gradients: dict[nn.Parameter, Tensor] = {}
    displacements: list[Tensor | None] = [-slope]
    remaining: list[float] = []
    wanted = -slope
    for index in reversed(range(len(modules))):
        point, value = runs.pop()
        params = [param for param in modules[index].parameters() if param.requires_grad]
        step, *steps = _steps(value, [point, *params], wanted)
        for param, of_param in zip(params, steps, strict=True):
            if of_param is not None:
                gradients[param] = gradients[param] - of_param if param in gradients else -of_param
        if not point.requires_grad:
            displacements.append(None)
            remaining.append(math.nan)
            break
        step = torch.zeros_like(point, requires_grad=False) if step is None else step
        problem = BlockLoss(index, modules[index], wanted, step, jacobian_of(value, point))
        lower = solver(problem)
        if not isinstance(lower, Tensor):
            raise TypeError(f"solver: got a {type(lower).__name__}, want a tensor of {tuple(point.shape)}")
        lower = lower.detach()
        if lower.shape != point.shape:
            raise ValueError(f"solver: got a displacement of {tuple(lower.shape)}, want {tuple(point.shape)}")
        missed = _norm_sq(wanted - problem.jacobian.push(lower))
        size = _norm_sq(wanted)
        remaining.append(missed / size if size else math.nan)
        displacements.append(lower)
        wanted = lower
    return BackMatching(found.detach(), gradients, tuple(reversed(displacements)), tuple(reversed(remaining)))


def chain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the modules of an ``nn.Sequential`` with their names, nested ones unpacked, from input to output.

    Raises:
        ValueError: the model is something else, so that it is not known which module follows which.

    Example:
        >>> back_matching([module for _, module in chain(model)], inputs, loss)
    """
    model = unwrapped(model)
    if not is_sequential(model):
        raise ValueError(f"model: got {type(model).__name__}, want an nn.Sequential, or make a list of its blocks")
    return list(parts(model, containers=()))


def _children(network: nn.Module) -> list[nn.Module]:
    network = unwrapped(network)
    if not is_sequential(network) and type(network).forward is not nn.Module.forward:
        raise ValueError(f"blocks: got {type(network).__name__}, want an nn.Sequential or a list of its blocks")
    return [child for child in network._modules.values() if child is not None]


def _steps(value: Tensor, points: list[Tensor], wanted: Tensor) -> list[Tensor | None]:
    """Returns Jᵀd by each of the points; None by one on which the value does not depend."""
    known = [point for point in points if point.requires_grad]
    if not known or not value.requires_grad:
        return [None] * len(points)
    found = dict(
        zip(known, torch.autograd.grad(value, known, wanted, retain_graph=True, allow_unused=True), strict=True)
    )
    return [found.get(point) for point in points]


def _norm_sq(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
