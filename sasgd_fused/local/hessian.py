"""`local_hessian`: the Hessian of one block's back-matching loss, as an operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sasgd_fused.local.arguments import Inputs, check_model, unwrapped
from sasgd_fused.local.capture import capture
from sasgd_fused.local.jacobian import Jacobian, jacobian_at, parameter_name, units
from sasgd_fused.options import is_positive_int

# Below that many rows Lanczos has nothing to save.
_SMALL = 64


@dataclass(frozen=True, eq=False, repr=False)
class LocalHessian:
    """A symmetric n × n matrix that is known by its products; see `local_hessian`.

    A vector has n elements, in one dimension or in the shape of the point; results have the shape that was given. All
    is as it was when the operator was made: after a weight has been changed in place, products raise RuntimeError.

    Attributes:
        jacobian: J of the block, also by itself (`push`, `pull`, `dense`).
        displacement: r, or None for the Gauss-Newton matrix JᵀJ.
    """

    jacobian: Jacobian
    displacement: Tensor | None

    def __repr__(self) -> str:
        n, point = self.shape[0], tuple(self.jacobian.point.shape)
        kind = "Gauss-Newton" if self.displacement is None else "with a displacement"
        return f"LocalHessian({n} × {n}, {self.dtype}, by a tensor of {point}, {kind})"

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n), with n the elements of the point, which is the input of the whole batch or one parameter."""
        return (self.jacobian.point.numel(),) * 2

    @property
    def dtype(self) -> torch.dtype:
        """That of the point, and of all products."""
        return self.jacobian.point.dtype

    @property
    def device(self) -> torch.device:
        """That of the point."""
        return self.jacobian.point.device

    def matvec(self, vector: Tensor) -> Tensor:
        """Returns H v. It takes a few times as long as a backward run of the block, twice that with a displacement.

        Raises:
            ValueError: the vector has another number of elements.
        """
        point = self.jacobian.point
        if vector.numel() != point.numel():
            raise ValueError(f"vector: got {tuple(vector.shape)}, want {point.numel()} elements")
        tangent = vector.detach().to(point).reshape(point.shape)
        product = self.jacobian.pull(self.jacobian.push(tangent))
        if self.displacement is not None:
            product = product - self.jacobian.bend(self.displacement, tangent)
        return product.reshape(vector.shape)

    def __matmul__(self, other: Tensor) -> Tensor:
        """Returns H v, or H V of a matrix with n rows."""
        if other.dim() == 2 and other.shape[0] == self.shape[0] != other.numel():
            return torch.stack([self.matvec(column) for column in other.unbind(1)], dim=1)
        return self.matvec(other)

    def trace(self, probes: int = 16, seed: int = 0) -> float:
        """Estimates the trace: the mean of vᵀHv over vectors v of random signs (Hutchinson).

        Its standard error is at most ‖H‖_F √(2 / probes); for a diagonal matrix it is exact.

        Raises:
            ValueError: `probes` is not a positive integer.
        """
        found = [torch.dot(vector.double(), (self @ vector).double()) for vector in self._signs(probes, seed)]
        return float(torch.stack(found).mean())

    def diagonal(self, probes: int = 16, seed: int = 0) -> Tensor:
        """Estimates the diagonal, in the shape of the point: the mean of v ⊙ Hv over vectors v of random signs.

        Raises:
            ValueError: `probes` is not a positive integer.
        """
        found = torch.zeros(self.shape[0], dtype=torch.float64, device=self.device)
        for vector in self._signs(probes, seed):
            found += vector.double() * (self @ vector).double() / probes
        return found.to(self.dtype).reshape(self.jacobian.point.shape)

    def largest(self, k: int = 1) -> Tensor:
        """Returns the k largest eigenvalues, the largest first. Needs scipy, except for very small blocks.

        Raises:
            ValueError: k is not an integer from 1 to n.
            ImportError: there is no scipy.
        """
        return self._eigenvalues(k, "LA").flip(0)[:k]

    def smallest(self, k: int = 1) -> Tensor:
        """Returns the k smallest eigenvalues, the smallest first. Needs scipy, except for very small blocks.

        Where many lie close together, as at 0, this takes long; `spectral_density` tells how many there are.

        Raises:
            ValueError: k is not an integer from 1 to n.
            ImportError: there is no scipy.
        """
        return self._eigenvalues(k, "SA")[:k]

    def dense(self, limit: int = 4096) -> Tensor:
        """Returns the n × n matrix, by n products.

        Raises:
            ValueError: n is above `limit`.
        """
        if self.shape[0] > limit:
            raise ValueError(f"limit: got {limit}, want at least the {self.shape[0]} rows of this operator")
        return torch.stack([(self @ unit).flatten() for unit in units(self.jacobian.point)])

    def to_scipy(self) -> Any:
        """Returns a `scipy.sparse.linalg.LinearOperator`, for the solvers there.

        Raises:
            ImportError: there is no scipy.
        """
        import numpy
        from scipy.sparse.linalg import LinearOperator

        dtype = self.dtype if self.dtype in (torch.float32, torch.float64) else torch.float32

        def product(vector: Any) -> Any:
            return (self @ torch.from_numpy(numpy.ascontiguousarray(vector))).to("cpu", dtype).numpy()

        return LinearOperator(self.shape, product, rmatvec=product, dtype=torch.empty(0, dtype=dtype).numpy().dtype)

    def _eigenvalues(self, k: int, which: str) -> Tensor:
        """Returns in ascending order k eigenvalues at one end, or all."""
        n = self.shape[0]
        if not is_positive_int(k) or k > n:
            raise ValueError(f"k: got {k!r}, want an integer from 1 to {n}")
        if n <= max(_SMALL, 2 * k):
            found: Tensor = torch.linalg.eigvalsh(self.dense(n).double())
            return found
        try:
            from scipy.sparse.linalg import eigsh
        except ImportError as error:
            raise ImportError("largest and smallest need scipy: pip install scipy") from error
        start = next(self._signs(1, 0)).double().cpu().numpy()
        operator = self.to_scipy()
        values = eigsh(operator, k=k, which=which, v0=start.astype(operator.dtype), return_eigenvectors=False)
        return torch.from_numpy(values).double().sort().values

    def _signs(self, probes: int, seed: int) -> Iterator[Tensor]:
        if not is_positive_int(probes):
            raise ValueError(f"probes: got {probes!r}, want a positive integer")
        generator = torch.Generator().manual_seed(seed)
        for _ in range(probes):
            signs = torch.randint(0, 2, (self.shape[0],), generator=generator) * 2 - 1
            yield signs.to(self.device, self.dtype)


def local_hessian(
    module: nn.Module,
    inputs: Inputs,
    wrt: str | nn.Parameter = "input",
    *,
    block: str | None = None,
    displacement: Tensor | None = None,
) -> LocalHessian:
    """Returns the Hessian of a block's back-matching loss, by its input or by one of its parameters, as an operator.

    The back-matching loss of a block F, with z its input and d the displacement that is wanted at its output, is
    summed over the batch and all units (5)::

        ℓ(W, z) = ½ ‖d + F(W⁰, z⁰) − F(W, z)‖²

    Its Hessian at the weights and the input as they are (13, 14), with x for z or for one parameter::

        H = JᵀJ − Σ_i d_i ∇²F_i        J = ∂F/∂x over the whole batch

    Without a displacement it is JᵀJ, the Gauss-Newton matrix, which is also what is meant where F is linear:

    - linear layer: H_z = WᵀW for each sample (8); H_W = I ⊗ Σ_j z[j] z[j]ᵀ, in the order of ``weight.flatten()`` (9).
    - skip: J_z = I + ∂φ/∂z.
    - linear + batch norm: H_z ≈ Σ_i w_i w_iᵀ / Var[w_iᵀ z] for each sample (17), but for terms of 1/m;
      H_w = (m/v) (C − C w wᵀ C / v) of one row w, with C the covariance of z in the batch of m and v = wᵀCw.
      The paper's (18) has Σ_j z[j] z[j]ᵀ / v, which leaves out that batch normalization removes the mean.

    H_W is sums over the batch: divide by m to compare batches. A bias has H = m I (times positions), or 0 in front of
    batch normalization. The block is run once, held still (`still`): in its own mode, without dropout. What is kept is
    the graph of that run and of one backward pass. Activation checkpointing has to be switched off before. Autocast is
    off inside, and it does not matter whether gradients are on (``torch.no_grad``).

    Args:
        module: the block; or the network, with `block` the name of one of its modules. It takes a floating tensor and
            returns one; of a tuple the first floating one counts. DataParallel, DistributedDataParallel and
            torch.compile around it are taken off for the while.
        inputs: the block's input; or the network's, as `capture` takes them.
        wrt: "input", or a parameter of the block or its name.
        block: the name of the module that is meant, as in ``named_modules()``.
        displacement: d, in the shape of the block's output. A gradient step has −∂J/∂output, as
            `back_matching(...).displacements` or ``capture(..., loss=...)[name].displacement``.

    Raises:
        TypeError: inputs or output are not a floating tensor, the module is no module, or the displacement no tensor.
        ValueError: there is no such block or parameter, or the output does not depend on it; the displacement has
            another shape or dtype than the output; inputs are empty or have NaN; something is on the meta device.
        RuntimeError: an operator in the block cannot be differentiated twice, or tensors belong to
            ``torch.inference_mode``.

    Example:
        >>> hessian = local_hessian(nn.Linear(800, 400, bias=False), torch.randn(1, 800))
        >>> hessian.largest(3), hessian.trace() / hessian.shape[0]
        >>> local_hessian(resnet, images, "conv1.weight", block="layer3.0").largest()
    """
    check_model(module)
    if displacement is not None and not isinstance(displacement, Tensor):
        raise TypeError(f"displacement: got a {type(displacement).__name__}, want a tensor in the shape of the output")
    module = unwrapped(module)
    if block is not None:
        call = capture(module, inputs, [block])[block]
        inside = unwrapped(module.get_submodule(block))
        found = parameter_name(inside, wrt)
        wrt = wrt if found == "input" else inside.get_parameter(found)
        module, inputs = call.module, call.inputs
    elif not isinstance(inputs, Tensor):
        raise TypeError(f"inputs: got {type(inputs).__name__}, want a tensor, or the network's inputs with block=")
    name = parameter_name(module, wrt)
    jacobian = jacobian_at(module, inputs, name)
    if not jacobian.value.requires_grad:
        raise ValueError(f"wrt: got {name!r}, on which the output of {type(module).__name__} does not depend")
    if displacement is not None and (displacement.shape, displacement.dtype) != (
        jacobian.value.shape,
        jacobian.value.dtype,
    ):
        got, want = ((tuple(tensor.shape), tensor.dtype) for tensor in (displacement, jacobian.value))
        raise ValueError(f"displacement: got {got}, want {want}, as the block's output")
    return LocalHessian(jacobian, None if displacement is None else displacement.detach().clone())
