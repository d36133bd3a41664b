"""Centred gradients and the covariance preconditioner: both rewrite gradients between backward and the step."""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sasgd_fused.input_moments import (
    CONVOLUTIONS,
    Moments,
    as_batch,
    empty_for,
    find_moments,
    groups_of,
    no_moments,
    outer,
)

# By ten each: from the rounding of the largest element to far above it.
_ATTEMPTS = 16


class CovariancePreconditioner:
    """Preconditions the gradients of linear layers and convolutions by the covariance of their inputs.

    For a layer ``a = W h + b`` with the gradients ``dW`` and ``db``, the mean ``h̄`` and the covariance ``C`` of its
    inputs, and ``ε = damping / alpha``, `step` replaces the gradients by (thesis 3.3.3, 3.3.4 and 3.4.2, corrected)::

        C_ε = C + ε I + ε/(1+ε) h̄ h̄ᵀ
        ΔW  = (dW - db h̄ᵀ/(1+ε)) C_ε⁻¹ / alpha
        Δb  = db / (alpha (1+ε)) - ΔW h̄/(1+ε)

    which is the gradient times the inverse of ``alpha A + damping I`` with ``A`` the mean of ``(h, 1)(h, 1)ᵀ``. A layer
    whose bias gets no gradient, or that has none, gets ``ΔW = dW (mean hhᵀ + ε I)⁻¹ / alpha``. With ``inverse=False``
    it is centred descent, ``ΔW = dW - db h̄ᵀ`` and ``Δb = db - ΔW h̄``, for layers with a bias alone. docs/links.md has
    the other methods that this is the same as.

    ``dW`` has one row for each output unit and, for a convolution, one column for each input channel of its group and
    position of its kernel. ``h`` is such a patch, every position of every image counts as an example, and each group
    has a covariance of its own. ``h̄`` is that of the inputs since the last step, ``C`` that of one step in `every`,
    with ε as it was then. Both, and the arithmetic, have float32 for parameters of 16 bits and else their dtype.

    Args:
        model: whose modules of exactly the types nn.Linear, nn.Conv1d, nn.Conv2d and nn.Conv3d are preconditioned if
            they hold their weight and bias as plain parameters that no other module holds. All others (subclasses,
            parametrized, tied, sharded, transposed) keep their gradients. `layers` lists the preconditioned ones.
        every: how many steps use a covariance before the next is taken.
        damping: λ, added to ``alpha A``. Where a matrix cannot be factored it is raised tenfold until it can, which is
            warned of once.
        alpha: the curvature of the loss in the layer's outputs, or ``"max"`` for the largest squared element of the
            gradients of single examples with respect to the layer's output, since the last step.
        inverse: whether to multiply by the inverse of the covariance, or to centre only.
        loss_reduction: for ``alpha="max"``: ``"mean"`` if the loss is divided by the first size of the layers' inputs,
            by which their outputs' gradients are multiplied then; ``"sum"`` if it is not.

    Attributes:
        layers: the preconditioned modules by name.

    Each forward in training mode with gradients counts, several between two steps together, as the gradients add up;
    under ``no_grad`` and in ``eval()`` none does. What checkpointing runs again in backward counts once. A forward is a
    call of `model`, in which a layer may be called once. Layers whose weight is frozen keep the gradient of their bias.
    Hooks that are there when torch.compile first runs break the graph at each layer; later ones it does not see.

    Where torch.distributed is initialised with several processes, all of them step together, and mean and covariance
    are those of all their inputs.

    With a GradScaler: after ``unscale_``. A covariance or alpha that is not finite is not taken; the next step tries
    again, and a layer that has none yet keeps its gradients. `ScaleAmendedSGD` scales the gradients of layers itself:
    put the preconditioned ones in a group with ``amend=False``. Under ``scale="relative"`` the length of their
    gradients has no influence even then.

    Raises:
        TypeError: `model` is no module.
        ValueError: an argument out of range, a model with uninitialized parameters or without a layer to precondition.

    Source: thesis, chapter 3 (docs/links.md names its errors); Martens and Grosse 2015 for the factored curvature.

    Example:
        >>> preconditioner = CovariancePreconditioner(model, every=20)
        >>> loss.backward()
        >>> preconditioner.step()
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 50,
        damping: float = 1e-2,
        alpha: float | Literal["max"] = 1.0,
        inverse: bool = True,
        loss_reduction: Literal["mean", "sum"] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, want a torch.nn.Module")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every: got {every!r}, want a positive int")
        if not _is_number(damping) or damping < 0:
            raise ValueError(f"damping: got {damping!r}, want a finite number of at least 0")
        if alpha != "max" and (not _is_number(alpha) or alpha <= 0):
            raise ValueError(f'alpha: got {alpha!r}, want a finite number above 0, or "max"')
        if not inverse and alpha != 1:
            raise ValueError(f"alpha: got {alpha!r} with inverse=False, want 1.0, since centring knows no alpha")
        reductions = ("mean", "sum") if alpha == "max" else (None,)
        if loss_reduction not in reductions:
            wanted = " or ".join(map(repr, reductions))
            raise ValueError(f"loss_reduction: got {loss_reduction!r}, want {wanted} with alpha={alpha!r}")
        self._every, self._damping, self._alpha, self._inverse = every, damping, alpha, inverse
        self._loss_reduction = loss_reduction
        self._layers = {module: _Layer(name) for name, module in _find_layers(model, needs_bias=not inverse)}
        self.layers: dict[str, nn.Module] = {layer.name: module for module, layer in self._layers.items()}
        self._forward = 0  # how many have begun
        self._has_warned = False
        see, begin = _Hook(weakref.WeakMethod(self._see)), _Hook(weakref.WeakMethod(self._begin))
        self._handles = [module.register_forward_hook(see, with_kwargs=True) for module in self._layers]
        self._handles.append(model.register_forward_pre_hook(begin))

    def remove(self) -> None:
        """Removes the hooks from the model, which is then as it was before; gradients are left alone from now on."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._layers.clear()

    def step(self, loss_scale: float = 1.0) -> None:
        """Rewrites the gradients.

        Args:
            loss_scale: for ``alpha="max"``: what the loss was multiplied by besides what `loss_reduction` says, as
                ``scaler.get_scale()``, or 1/k where k losses are averaged over k backward passes.

        Raises:
            RuntimeError: a layer has a gradient, but no inputs since the last step. All gradients are as they were.
            ValueError: `loss_scale` is not a finite number above 0.
        """
        if not _is_number(loss_scale) or loss_scale <= 0:
            raise ValueError(f"loss_scale: got {loss_scale!r}, want a finite number above 0")
        with torch.no_grad():
            seen: list[tuple[_Layer, Any, Moments, Tensor | float]] = []
            for module, layer in self._layers.items():
                if not module.weight.requires_grad:
                    continue
                moments, alpha = self._seen_everywhere(module, layer, loss_scale)
                if moments.count:
                    seen.append((layer, module, moments, alpha))
                elif module.weight.grad is not None:
                    raise RuntimeError(
                        f"step: got a gradient of the layer {layer.name!r} but no inputs since the last step, want a "
                        "forward in training mode with gradients, of a model that was not compiled before its hooks"
                    )
            for layer, module, moments, alpha in seen:
                if moments.scatter is not None:
                    self._estimate(layer, module, moments, alpha)
            for layer, module, moments, alpha in seen:
                if layer.inverse is not None or not self._inverse:
                    _rewrite(module, moments.mean, layer, alpha)
                layer.age += 1
            for layer in self._layers.values():
                layer.moments = layer.largest = None
                layer.forward = -1

    def state_dict(self) -> dict[str, Any]:
        """Returns the inverse covariance of each layer, its ε and its age in steps, between two steps."""
        return {
            layer.name: {"inverse": layer.inverse, "epsilon": layer.epsilon, "age": layer.age}
            for layer in self._layers.values()
            if layer.inverse is not None
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned.

        Raises:
            ValueError: a layer that is not preconditioned here, or has another shape. Nothing is loaded then.
        """
        layers = {layer.name: (layer, module) for module, layer in self._layers.items()}
        if unknown := sorted(set(state_dict) - set(layers)):
            raise ValueError(f"state_dict: got the layers {', '.join(unknown)}, want some of {', '.join(layers)}")
        for name, state in state_dict.items():
            groups, inputs = groups_of(layers[name][1])
            if tuple(state["inverse"].shape) != (groups, inputs, inputs):
                shape = tuple(state["inverse"].shape)
                raise ValueError(f"state_dict: got {shape} for the layer {name}, want {(groups, inputs, inputs)}")
        for name, (layer, module) in layers.items():
            state = state_dict.get(name, {"inverse": None, "epsilon": 0.0, "age": 0})
            layer.epsilon, layer.age, inverse = state["epsilon"], state["age"], state["inverse"]
            layer.inverse = None if inverse is None else inverse.to(empty_for(module), copy=True)

    def _begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self._forward += not _is_in_backward()

    def _see(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        layer = self._layers.get(module)  # None for a copy of the module, which has the same hook
        if not layer or not (torch.is_grad_enabled() and module.training and module.weight.requires_grad):
            return
        if layer.forward == self._forward:
            if _is_in_backward():
                return  # checkpointing runs it again
            raise RuntimeError(f"model: got a second call of the layer {layer.name!r} in one forward, want one at most")
        layer.forward = self._forward
        inputs: Tensor = (args[0] if args else kwargs["input"]).detach()
        wants_scatter = self._inverse and (layer.inverse is None or layer.age >= self._every)
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            moments = find_moments(module, inputs, wants_scatter)
        layer.moments = moments if layer.moments is None else layer.moments + moments
        if self._alpha == "max":
            examples = len(as_batch(module, inputs)) if self._loss_reduction == "mean" else 1

            def see_gradient(grad: Tensor) -> None:
                largest = (grad.detach().abs().amax().to(empty_for(module)) * examples).square()
                layer.largest = largest if layer.largest is None else torch.maximum(layer.largest, largest)

            output.register_hook(see_gradient)  # type: ignore[no-untyped-call]

    def _seen_everywhere(self, module: Any, layer: _Layer, loss_scale: float) -> tuple[Moments, Tensor | float]:
        """Returns the moments of a layer's inputs and alpha, of all processes."""
        wants_scatter = self._inverse and (layer.inverse is None or layer.age >= self._every)
        moments = layer.moments or no_moments(module, wants_scatter)
        largest = empty_for(module).new_zeros(()) if layer.largest is None else layer.largest
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            moments = moments.of_all_processes()
            if self._alpha == "max":
                dist.all_reduce(largest, dist.ReduceOp.MAX)
        if self._alpha != "max":
            return moments, self._alpha
        # Where all gradients are zero they stay so.
        return moments, largest.masked_fill(largest == 0, math.inf) / loss_scale**2

    def _estimate(self, layer: _Layer, module: Any, moments: Moments, alpha: Tensor | float) -> None:
        """Factors the damped covariance; leaves the layer as it is where the covariance or alpha are not usable."""
        assert moments.scatter is not None
        of_mean = outer(moments.mean)
        is_centred = _has_trained_bias(module)
        covariance = moments.scatter / moments.count
        if not is_centred:
            covariance += of_mean
        curvature = float(alpha)
        epsilon = self._damping / curvature
        if not (math.isfinite(curvature) and math.isfinite(epsilon) and covariance.isfinite().all()):
            return
        largest = float(covariance.diagonal(dim1=1, dim2=2).amax())
        for _ in range(_ATTEMPTS):
            damped = covariance.add(of_mean, alpha=epsilon / (1 + epsilon)) if is_centred else covariance.clone()
            damped.diagonal(dim1=1, dim2=2).add_(epsilon)
            factor, info = torch.linalg.cholesky_ex(damped)
            if not info.any():
                layer.inverse, layer.epsilon, layer.age = torch.cholesky_inverse(factor), epsilon, 0
                return
            epsilon = max(10 * epsilon, torch.finfo(damped.dtype).eps * largest) or 1.0
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"damping: {self._damping} is too little to factor the covariance of the inputs of "
                    f"{layer.name!r}; it is raised tenfold until it is enough",
                    stacklevel=3,
                )


@dataclass
class _Layer:
    """What is known of a layer.

    Attributes:
        name: the module's in the model.
        forward: the number of the forward in which it was called last.
        moments: of its inputs since the last step.
        largest: the largest squared gradient of its outputs since then, in the units of single examples.
        inverse: of the damped covariance, for each group.
        epsilon: the damping in it.
        age: how many steps have used it.
    """

    name: str
    forward: int = -1
    moments: Moments | None = None
    largest: Tensor | None = None
    inverse: Tensor | None = None
    epsilon: float = 0.0
    age: int = 0


class _Hook:
    """Calls a method as long as its object lives; a copy, or one from a pickle, calls nothing."""

    def __init__(self, method: Callable[[], Callable[..., None] | None] = lambda: None) -> None:
        self._method = method

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def __call__(self, *args: Any) -> None:
        if method := self._method():
            method(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _find_layers(model: nn.Module, needs_bias: bool) -> list[tuple[str, nn.Module]]:
    for name, param in model.named_parameters():
        if is_lazy(param):
            raise ValueError(f"model: got the uninitialized parameter {name}, want a model that has been run once")
    holders = Counter(id(param) for module in model.modules() for param in module._parameters.values())
    found = []
    for name, module in model.named_modules():
        if type(module) not in (nn.Linear, *CONVOLUTIONS):
            continue
        held = [param for slot in ("weight", "bias") if (param := getattr(module, slot)) is not None]
        are_own = all(type(param) is nn.Parameter and holders[id(param)] == 1 for param in held)
        is_whole = held[0].dim() == 2 + len(getattr(module, "kernel_size", ())) and held[0].numel()  # not a flat part
        if are_own and is_whole and held[0].is_floating_point() and len(held) > needs_bias:
            found.append((name, module))
    if not found:
        kind = "nn.Linear or convolution" + (" with a bias" if needs_bias else "")
        raise ValueError(f"model: got {type(model).__name__} without a layer to precondition, want a plain {kind}")
    return found


def _has_trained_bias(module: Any) -> bool:
    return module.bias is not None and module.bias.requires_grad


def _rewrite(module: Any, mean: Tensor, layer: _Layer, alpha: Tensor | float) -> None:
    """Replaces the gradients of a layer by their preconditioned, or without an inverse by their centred ones."""
    if module.weight.grad is None:
        return
    shrink = 1 / (1 + layer.epsilon)
    rows = module.weight.grad.to(mean.dtype).reshape(len(mean), -1, mean.shape[1])
    has_bias = _has_trained_bias(module) and module.bias.grad is not None
    if has_bias:
        of_bias = module.bias.grad.to(mean.dtype).reshape(len(mean), -1, 1)
        rows = torch.baddbmm(rows, of_bias, mean.unsqueeze(1), alpha=-shrink)
    if layer.inverse is not None:
        rows = (rows @ layer.inverse.to(mean)).div_(alpha)
    if has_bias:
        of_bias = of_bias * (shrink / alpha) - rows @ mean.unsqueeze(2) * shrink
        module.bias.grad.copy_(of_bias.reshape(module.bias.shape))
    module.weight.grad.copy_(rows.reshape(module.weight.shape))
