"""Layer profiles of real networks, and one factory that makes a contender ready to be timed.

A profile is the list of parameter shapes in the order of `model.parameters()`. It is generated from
the rules of the architecture, so that no model library is needed; the totals are tested against the
published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bench.contenders import CONTENDERS, GRADIENT_SCALE

Shape = tuple[int, ...]


def _linear(outputs: int, inputs: int) -> list[Shape]:
    return [(outputs, inputs), (outputs,)]


def _conv_norm(outputs: int, inputs: int, kernel: int) -> list[Shape]:
    """A convolution without bias, then the scale and shift of its batch normalisation."""
    return [(outputs, inputs, kernel, kernel), (outputs,), (outputs,)]


def vgg13_cifar() -> list[Shape]:
    """VGG13 for 10 classes as in section 4 of the paper: no biases, no affine norms, one head."""
    widths = (3, 64, 64, 128, 128, 256, 256, 512, 512, 512, 512)
    convolutions: list[Shape] = [(outputs, inputs, 3, 3) for inputs, outputs in pairwise(widths)]
    return [*convolutions, (10, 512)]


def vgg16() -> list[Shape]:
    """VGG16 for ImageNet (Simonyan and Zisserman 2015, configuration D), with biases."""
    shapes: list[Shape] = []
    for inputs, outputs in pairwise((3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6)):
        shapes += [(outputs, inputs, 3, 3), (outputs,)]
    for inputs, outputs in pairwise((512 * 7 * 7, 4096, 4096, 1000)):
        shapes += _linear(outputs, inputs)
    return shapes


def resnet(depths: Sequence[int]) -> list[Shape]:
    """ResNet for ImageNet (He et al. 2016) of bottlenecks with projection shortcuts."""
    shapes = _conv_norm(64, 3, 7)
    inputs = 64
    for width, depth in zip((64, 128, 256, 512), depths, strict=True):
        for index in range(depth):
            shapes += _conv_norm(width, inputs, 1) + _conv_norm(width, width, 3)
            shapes += _conv_norm(4 * width, width, 1)
            if index == 0:
                shapes += _conv_norm(4 * width, inputs, 1)
            inputs = 4 * width
    return shapes + _linear(1000, inputs)


def densenet(depths: Sequence[int]) -> list[Shape]:
    """DenseNet for ImageNet (Huang et al. 2017): growth 32, bottlenecks of 128."""
    shapes = _conv_norm(64, 3, 7)
    channels = 64
    for block, depth in enumerate(depths):
        if block > 0:
            shapes += [(channels,), (channels,), (channels // 2, channels, 1, 1)]
            channels //= 2
        for _ in range(depth):
            shapes += [(channels,), (channels,), *_conv_norm(128, channels, 1), (32, 128, 3, 3)]
            channels += 32
    return [*shapes, (channels,), (channels,), *_linear(1000, channels)]


def mobilenet_v2() -> list[Shape]:
    """MobileNetV2 for ImageNet (Sandler et al. 2018): inverted residuals, depthwise 3x3."""
    shapes = _conv_norm(32, 3, 3)
    inputs = 32
    for expansion, outputs, repeats in (
        (1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1),
    ):  # fmt: skip
        for _ in range(repeats):
            hidden = expansion * inputs
            if expansion > 1:
                shapes += _conv_norm(hidden, inputs, 1)
            shapes += _conv_norm(hidden, 1, 3) + _conv_norm(outputs, hidden, 1)
            inputs = outputs
    return shapes + _conv_norm(1280, inputs, 1) + _linear(1000, 1280)


def pythia_1b() -> list[Shape]:
    """Pythia-1B (Biderman et al. 2023), a language model: 16 blocks of width 2048, 50304 tokens."""
    width, tokens = 2048, 50304
    norm: list[Shape] = [(width,), (width,)]
    block = [*norm, *norm, *_linear(3 * width, width), *_linear(width, width)]
    block += [*_linear(4 * width, width), *_linear(width, 4 * width)]
    return [(tokens, width), *block * 16, *norm, (tokens, width)]


CASES: dict[str, list[Shape]] = {
    "VGG13-CIFAR": vgg13_cifar(),
    "ResNet-50": resnet((3, 4, 6, 3)),
    "VGG16": vgg16(),
    "DenseNet-121": densenet((6, 12, 24, 16)),
    "MobileNetV2": mobilenet_v2(),
    "160x64": [(8, 8)] * 160,
}


def grid(tensors: int, elements: int) -> list[Shape]:
    """Returns equal matrices, square or twice as high as wide, of a power of two elements."""
    columns = 2 ** ((elements.bit_length() - 1) // 2)
    return [(elements // columns, columns)] * tensors


# For the curves over the number of parameters and that of tensors: `TENSORSxELEMENTS`.
GRID_CASES: dict[str, list[Shape]] = {
    f"{tensors}x{elements}": grid(tensors, elements)
    for tensors, elements in (
        *((64, 64), (64, 1024), (64, 16384), (64, 65536), (64, 262144)),
        *((1, 1048576), (16, 65536), (256, 4096), (1024, 1024)),
    )
}
# Only for GPUs: on a CPU they show nothing that the others do not.
LARGE_CASES: dict[str, list[Shape]] = {
    "ResNet-152": resnet((3, 8, 36, 3)),
    "DenseNet-201": densenet((6, 12, 48, 32)),
    "Pythia-1B": pythia_1b(),
}


def shapes_of(case: str) -> list[Shape]:
    """Returns the parameters' shapes of a case of any table."""
    return {**CASES, **GRID_CASES, **LARGE_CASES}[case]


def parameter_count(case: str) -> int:
    """Counts the parameters of a case."""
    return sum(math.prod(shape) for shape in shapes_of(case))


@dataclass(frozen=True)
class Setup:
    """An optimizer with its own parameters and gradients; `step` is what is timed."""

    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer
    step: Callable[[], object]

    def step_bytes(self) -> int:
        """Returns the bytes that a step moves: weights, gradients and state as read, weights and state as written.

        State is what has its parameter's shape: momentum, second moments, masters.
        """
        written = sum(parameter.nbytes for parameter in self.parameters) + self.state_bytes()
        return 2 * written + sum(parameter.grad.nbytes for parameter in self.parameters if parameter.grad is not None)

    def state_bytes(self) -> int:
        """Returns the bytes of the state that has its parameter's shape."""
        return sum(values.nbytes for parameter in self.parameters for values in self._state_of(parameter).values())

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.optimizer.state[parameter].items()
        return {name: value for name, value in state if isinstance(value, Tensor) and value.shape == parameter.shape}

    def check_values(self) -> None:
        """Raises RuntimeError if a weight, gradient or state is denormal, infinite or NaN.

        Such numbers can change the time of an operation, so a measurement with them is void. (Some optimizers write the
        gradients.) float16 is computed with as float32, where its denormal numbers are normal.
        """
        for index, parameter in enumerate(self.parameters):
            assert parameter.grad is not None
            known = {"weight": parameter.detach(), "grad": parameter.grad, **self._state_of(parameter)}
            for name, values in known.items():
                magnitude = values.abs()
                computed = torch.float32 if values.dtype == torch.float16 else values.dtype
                denormal = (magnitude < torch.finfo(computed).tiny) & (magnitude > 0)
                if denormal.any() or not magnitude.isfinite().all():
                    raise RuntimeError(
                        f"{name} of parameter {index} has denormal or non-finite values, want normal ones"
                    )


def make_parameters(case: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    """Makes parameters with fixed gradients, the same at every call, in memory of their own.

    Weights are normal with He's standard deviation sqrt(2 / fan_in).

    Args:
        case: a key of `CASES`, `GRID_CASES` or `LARGE_CASES`.
        dtype: of parameters and gradients.
        device: where they are made and live.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: Shape, deviation: float) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, deviation, generator=generator)

    parameters: list[Tensor] = []
    for shape in shapes_of(case):
        parameter = normal(shape, math.sqrt(2 / math.prod(shape[1:]))).requires_grad_()
        parameter.grad = normal(shape, GRADIENT_SCALE)
        parameters.append(parameter)
    return parameters


def setup(
    case: str, contender: str, dtype: torch.dtype = torch.float32, threads: int = 1, device: str = "cpu"
) -> Setup:
    """Makes an optimizer that has taken its first step, with parameters and gradients of `make_parameters`.

    Sets torch's thread count, which holds for the whole process.

    Args:
        case: see `make_parameters`, as for `dtype` and `device`.
        contender: a key of `CONTENDERS`.
        dtype: of parameters and gradients.
        threads: number of threads of the step.
        device: where parameters and gradients are made and live.
    """
    torch.set_num_threads(threads)
    parameters = make_parameters(case, dtype, device)
    optimizer, step = CONTENDERS[contender](parameters)
    step()
    return Setup(parameters, optimizer, step)
