"""`capture`: what the blocks of a network are given in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sasgd_fused.local.arguments import Inputs, arguments_of, check_model, check_scalar, unwrapped
from sasgd_fused.local.jacobian import floating_output
from sasgd_fused.local.still import devices_of, still, without_autocast


@dataclass(frozen=True, eq=False, repr=False)
class Captured:
    """A block of a network, and what it was given.

    Attributes:
        module: the block as a function of one tensor: the module itself; several in a row; or one whose other
            arguments are held fixed.
        inputs: the tensor, detached.
        displacement: −∂loss/∂output, by which back-propagation wants the output to move; None without a loss.
    """

    module: nn.Module
    inputs: Tensor
    displacement: Tensor | None

    def __repr__(self) -> str:
        given = f"inputs {tuple(self.inputs.shape)} {self.inputs.dtype}"
        wanted = None if self.displacement is None else tuple(self.displacement.shape)
        return f"Captured({type(self.module).__name__}, {given}, displacement {wanted})"


def capture(
    model: nn.Module,
    inputs: Inputs,
    blocks: Iterable[str] | None = None,
    *,
    loss: Callable[[Any], Tensor] | None = None,
) -> dict[str, Captured]:
    """Runs a network once, held still (`still`) and without autocast, and returns what its blocks were given.

    What the network's forward does itself between its children, such as F.relu, pooling or flatten, belongs to no
    block: name a module that contains it.

    Args:
        model: the network. DataParallel, DistributedDataParallel and torch.compile around it or a block are taken off.
        inputs: one batch: a tensor, a tuple of positional arguments, or a mapping of named ones.
        blocks: names of modules, as in ``named_modules()`` of the network inside. None takes the network's children,
            and of an ``nn.Sequential``, or an ``nn.ModuleList`` or ``nn.ModuleDict`` without a forward of its own,
            theirs. A layer with a matrix begins a block; layers without one that are called next, with the tensor that
            it returned, belong to it: batch normalization, activation, pooling. A child that has children, such as a
            residual block, is a block by itself. What does not take and return a floating tensor, such as an embedding,
            is passed over. Of a tuple that is returned the first floating tensor counts; a tensor that is given as
            several arguments (attention to itself) is one.
        loss: takes the network's output and returns a scalar; gives `Captured.displacement`.

    Returns:
        The blocks by name, in the order in which they were called. A block of several modules is named by the first
        and the last, a module with several names by its first; one that is called again has ``_2``, ``_3`` and so on
        behind its name.

    Raises:
        ValueError: there is no module of a name in `blocks`, or it was not called; the loss is no scalar; inputs are
            empty or have NaN; something is on the meta device.
        TypeError: a module in `blocks` does not take a floating tensor and return one; `blocks` are no names, `model`
            is no module, or `inputs` is none of the above.
        RuntimeError: the network's tensors, or this call, belong to ``torch.inference_mode``.
    """
    check_model(model)
    model = unwrapped(model)
    if isinstance(blocks, str):
        raise TypeError(f"blocks: got the string {blocks!r}, want names of modules: [{blocks!r}]")
    if isinstance(blocks, nn.Module):
        raise TypeError(f"blocks: got a {type(blocks).__name__}, want names of modules")
    names = None if blocks is None else list(blocks)
    for name in names or ():
        if not isinstance(name, str):
            raise TypeError(f"blocks: got a {type(name).__name__}, want names of modules")
    named = parts(model) if names is None else [(name, _submodule(model, name)) for name in names]
    watched: dict[nn.Module, str] = {}
    for name, module in named:
        watched.setdefault(module, name)
    recorder = _Recorder(is_chosen=names is not None, keeps_outputs=loss is not None)
    args, kwargs = arguments_of(inputs)
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    gradients = torch.set_grad_enabled(loss is not None)
    with ExitStack() as hooks, gradients, still(model), without_autocast(devices_of(model, *tensors)):
        for module, name in watched.items():
            hooks.callback(module.register_forward_pre_hook(recorder.enter(name), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(recorder.leave, always_call=True).remove)
        output = model(*args, **kwargs)
        slopes: list[Tensor | None] = [None] * len(recorder.runs)
        outputs = [run.output for run in recorder.runs]
        if loss is not None and outputs:
            slopes = list(torch.autograd.grad(check_scalar(loss(output)), outputs, materialize_grads=True))
    found: dict[str, Captured] = {}
    for run, slope in zip(recorder.runs, slopes, strict=True):
        name, number = run.name, 1
        while name in found:
            number += 1
            name = f"{run.name}_{number}"
        found[name] = Captured(run.block(), run.inputs, None if slope is None else -slope)
    for name in watched.values() if names is not None else ():
        if name not in found:
            raise ValueError(
                f"blocks: got {name!r}, which the network did not call or which returned nothing, want modules that it "
                "calls"
            )
    return found


def parts(
    module: nn.Module, prefix: str = "", containers: tuple[type[nn.Module], ...] = (nn.ModuleList, nn.ModuleDict)
) -> Iterator[tuple[str, nn.Module]]:
    """Yields a network's children with their names, those of an `nn.Sequential` or another container one by one."""
    children = [(f"{prefix}{name}", child) for name, child in module._modules.items() if child is not None]
    if not children and not prefix:
        yield "", module
    for name, child in children:
        # A subclass with a forward of its own is no mere container: torchvision's dense blocks are ModuleDicts.
        is_container = isinstance(child, containers) and type(child).forward is nn.Module.forward
        if is_sequential(child) or is_container:
            yield from parts(child, f"{name}.", containers)
        else:
            yield name, child


def is_sequential(module: nn.Module) -> bool:
    """Whether a module calls its children one after the other, and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


class _Bound(nn.Module):
    """A module of one tensor, given at some places of its arguments, while the others are held fixed."""

    def __init__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], places: list[int | str]
    ) -> None:
        super().__init__()
        self.module, self.args, self.kwargs, self.places = module, args, kwargs, places

    def forward(self, inputs: Tensor) -> Any:
        args = [inputs if place in self.places else value for place, value in enumerate(self.args)]
        kwargs = {name: inputs if name in self.places else value for name, value in self.kwargs.items()}
        return self.module(*args, **kwargs)


@dataclass(eq=False)
class _Run:
    """Modules that were called one after the other, each with what the one before it had returned."""

    names: list[str]
    modules: list[nn.Module]
    inputs: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    places: list[int | str]
    output: Tensor  # of the last of them
    returned: Tensor | None = None  # what the next one was given of it

    @property
    def name(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} … {self.names[-1]}"

    def block(self) -> nn.Module:
        if len(self.modules) > 1:
            return nn.Sequential(*self.modules)
        (module,) = self.modules
        is_alone = not self.kwargs and len(self.args) == 1
        return module if is_alone else _Bound(module, self.args, self.kwargs, self.places)

    def drop(self) -> bool:
        """Takes back the last module, which has not returned a tensor, and tells whether none is left."""
        self.names.pop()
        self.modules.pop()
        return not self.modules


class _Recorder:
    """The hooks, and the runs that they have seen.

    Args:
        is_chosen: whether the modules are those that the user named: then each is a run by itself.
        keeps_outputs: whether gradients by the outputs are wanted.
    """

    def __init__(self, is_chosen: bool, keeps_outputs: bool) -> None:
        self.runs: list[_Run] = []
        self._is_chosen, self._keeps_outputs = is_chosen, keeps_outputs
        # Modules that have been entered and not left, each with its run.
        self._open: list[tuple[nn.Module, _Run | None]] = []

    def enter(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """Returns the hook before a module's forward."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._open.append((module, None))
            self._open[-1] = (module, self._run(name, module, args, kwargs))

        return hook

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Is the hook after a module's forward, called also if it has raised, with None."""
        if not self._open or self._open[-1][0] is not module:
            return None  # another hook has raised before `enter`
        _, run = self._open.pop()
        if run is None:
            return None
        try:
            tensor = floating_output(output, run.names[-1])
        except TypeError:
            if self._is_chosen and output is not None:
                raise
            if run.drop():
                self.runs.remove(run)
            return None
        if not self._keeps_outputs:
            run.returned = tensor
            return None
        # What comes next may write into its input; it gets a copy, so that the gradient is by this output.
        run.output = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        run.returned = run.output.clone()
        if isinstance(output, Tensor):
            return run.returned
        make = getattr(type(output), "_make", type(output))  # a named tuple takes no iterable
        return make([run.returned if part is tensor else part for part in output])

    def _run(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Run | None:
        given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        floating = [place for place, value in given if isinstance(value, Tensor) and value.is_floating_point()]
        if not floating:
            if self._is_chosen:
                raise TypeError(f"blocks: got {name!r}, which takes no floating tensor, want a module that does")
            return None
        tensor = dict(given)[floating[0]]
        places = [place for place, value in given if value is tensor]
        last = self.runs[-1] if self.runs else None
        if not self._is_chosen and last and last.returned is tensor and len(given) == 1 and _belongs(module, last):
            last.names.append(name)
            last.modules.append(unwrapped(module))
            return last
        fixed = tuple(map(_detached, args)), {key: _detached(value) for key, value in kwargs.items()}
        self.runs.append(_Run([name], [unwrapped(module)], tensor.detach().clone(), *fixed, places, tensor))
        return self.runs[-1]


def _belongs(module: nn.Module, run: _Run) -> bool:
    """Whether a module is one more operation on what the layers of a run return."""
    has_matrix = any(param.dim() > 1 for param in module.parameters())
    return not has_matrix and not any(part._modules for part in (module, *run.modules))


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"blocks: got {name!r}, want names of modules of {type(model).__name__}") from None
