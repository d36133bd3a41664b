"""KFAC (Martens and Grosse 2015) for networks of linear layers and a squared error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.optim import Optimizer

from experiments.autoencoder.presets import loss_of

DECAY = 0.95  # of the factors, for each step
EVERY_DAMPING = 5  # steps between two adaptations of the damping
SHRINK = (19 / 20) ** EVERY_DAMPING


@dataclass(frozen=True)
class Factors:
    """The curvature of a layer, which is estimated by the Kronecker product of A and G.

    Attributes:
        a: A, the mean of the outer products of its inputs, 1 for the bias behind them.
        g: G, that of the gradients of single examples with respect to its outputs.
    """

    a: Tensor
    g: Tensor

    def mixed(self, newer: Factors, share: float) -> Factors:
        """Returns an average of both, in which the newer one has this share."""
        return Factors(torch.lerp(self.a, newer.a, share), torch.lerp(self.g, newer.g, share))

    def inverses(self, damping: float) -> tuple[Tensor, Tensor]:
        """Returns (A + π √λ I)⁻¹ and (G + √λ/π I)⁻¹, where π² = (tr A / size of A) / (tr G / size of G)."""
        ratio = float((self.a.trace() / len(self.a)) / (self.g.trace() / len(self.g)))
        pi = math.sqrt(ratio) if 0 < ratio < math.inf else 1.0
        return _inverse(self.a, pi * math.sqrt(damping)), _inverse(self.g, math.sqrt(damping) / pi)


def estimate_factors(model: nn.Module, images: Tensor, noise: Tensor) -> dict[nn.Linear, Factors]:
    """Returns the factors of each linear layer.

    The labels are the network's own, drawn from the distribution whose negative logarithm the loss is: with the loss
    ‖f - y‖² they are normal about f with variance 1/2. So the gradient in f is normal with variance 2.

    Args:
        model: the network.
        images: a batch.
        noise: normal with variance 1, shaped as its outputs.
    """
    with _recorded(model) as (inputs, outputs):
        result = model(images)
    gradients = torch.autograd.grad(result, list(outputs.values()), math.sqrt(2) * noise)
    found = {}
    for (layer, seen), gradient in zip(inputs.items(), gradients, strict=True):
        extended = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        found[layer] = Factors(extended.T @ extended / len(seen), gradient.T @ gradient / len(seen))
    return found


def adapted(damping: float, predicted: float, change: float) -> float:
    """Returns the damping after a step, by the rule of Levenberg and Marquardt, as in section 6.5 of the paper.

    Args:
        damping: λ.
        predicted: how much the damped quadratic model has the loss of the batch change by the step.
        change: how much it changed. Where it fell by more than 3/4 of what was predicted, λ is multiplied by (19/20)⁵;
            by less than 1/4, or where no fall was predicted, divided by it.
    """
    if predicted < 0 and change < 0.75 * predicted:
        return damping * SHRINK
    return damping if predicted < 0 and change <= 0.25 * predicted else damping / SHRINK


class KFAC(Optimizer):
    """SGD with momentum along gradients that are preconditioned by KFAC.

    Factors are estimated and inverted every few steps. The damping is `adapted` every five. The step's length is not
    taken from the quadratic model, as the paper does it: it is `lr`, which is tuned as that of other methods.

    Args:
        model: linear layers with biases, and what has no parameters.
        lr: learning rate.
        momentum: of the preconditioned gradients.
        every: steps between two estimates.
        damping: λ at first.
        seed: draws the labels.
    """

    def __init__(self, model: nn.Module, lr: float, *, momentum: float, every: int, damping: float, seed: int) -> None:
        super().__init__(model.parameters(), {"lr": lr})
        self._model, self._momentum, self._every, self.damping = model, momentum, every, damping
        self._generator = torch.Generator().manual_seed(seed)
        self._factors: dict[nn.Linear, Factors] = {}
        self._inverses: dict[nn.Linear, tuple[Tensor, Tensor]] = {}
        self._buffers = {
            layer: torch.zeros_like(torch.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1))
            for layer in model.modules()
            if isinstance(layer, nn.Linear)
        }
        self._count = 0
        self._images = torch.empty(0)
        model.register_forward_pre_hook(self._see)

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Takes a step, by the gradients and the images of the last forward.

        Raises:
            ValueError: a closure is given.
        """
        if closure is not None:
            raise ValueError("closure: got one, want None")
        if self._count % self._every == 0:
            self._estimate()
        (group,) = self.param_groups
        change: dict[nn.Linear, Tensor] = {}
        for layer, (of_inputs, of_outputs) in self._inverses.items():
            direction = of_outputs @ gradient_of(layer) @ of_inputs
            change[layer] = self._buffers[layer].mul_(self._momentum).add_(direction) * -group["lr"]
        self._count += 1
        if self._count % EVERY_DAMPING:
            _add(change)
            return
        before, predicted = self._predict(change)
        _add(change)
        after = float(loss_of(self._model(self._images), self._images))
        self.damping = adapted(self.damping, predicted, after - before)

    def _see(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        (self._images,) = args

    def _estimate(self) -> None:
        noise = torch.randn(self._images.shape, generator=self._generator, dtype=self._images.dtype)
        with torch.enable_grad():
            new = estimate_factors(self._model, self._images, noise)
        share = max(1 / (1 + self._count // self._every), 1 - DECAY**self._every)
        for layer, factors in new.items():
            old = self._factors.get(layer, factors)
            self._factors[layer] = old.mixed(factors, share)
            self._inverses[layer] = self._factors[layer].inverses(self.damping)

    def _predict(self, change: dict[nn.Linear, Tensor]) -> tuple[float, float]:
        """Returns the loss, and how much the damped quadratic model has it change by a step δ: ∇ᵀδ + ‖Jδ‖² + λ/2 ‖δ‖².

        ‖Jδ‖² is half of δᵀFδ, with the Fisher matrix F = 2 JᵀJ of the squared error.
        """
        tangents = {}
        slope = square = 0.0
        for name, layer in self._model.named_modules():
            if isinstance(layer, nn.Linear):
                step = change[layer]
                tangents[f"{name}.weight"], tangents[f"{name}.bias"] = step[:, :-1], step[:, -1]
                slope += float((gradient_of(layer) * step).sum())
                square += float(step.square().sum())

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            result: Tensor = functional_call(self._model, parameters, self._images)
            return result

        parameters = {name: parameter.detach() for name, parameter in self._model.named_parameters()}
        found, moved = jvp(outputs, (parameters,), (tangents,))[:2]
        predicted = slope + float(moved.square().sum(1).mean()) + self.damping / 2 * square
        return float(loss_of(found, self._images)), predicted


def gradient_of(layer: nn.Linear) -> Tensor:
    """Returns the gradient of a layer's weight and bias, (outputs, inputs and the bias)."""
    assert layer.weight.grad is not None and layer.bias.grad is not None
    return torch.cat([layer.weight.grad, layer.bias.grad.unsqueeze(1)], dim=1)


def _add(change: dict[nn.Linear, Tensor]) -> None:
    for layer, step in change.items():
        layer.weight.add_(step[:, :-1])
        layer.bias.add_(step[:, -1])


@contextmanager
def _recorded(model: nn.Module) -> Iterator[tuple[dict[nn.Linear, Tensor], dict[nn.Linear, Tensor]]]:
    """Yields what the linear layers of a model take in and give out, by layer, in the order of their calls."""
    inputs: dict[nn.Linear, Tensor] = {}
    outputs: dict[nn.Linear, Tensor] = {}

    def see(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[layer], outputs[layer] = args[0].detach(), output

    handles = [module.register_forward_hook(see) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


def _inverse(matrix: Tensor, damping: float) -> Tensor:
    """Returns the inverse of a damped matrix; NaN where it has none, with which a run has diverged."""
    factor, info = torch.linalg.cholesky_ex(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype))
    return torch.full_like(matrix, math.nan) if info else torch.cholesky_inverse(factor)
