"""`ScaleAmendedSGD`, the optimizer: what torch.optim expects of one, on top of plans and backends."""

from __future__ import annotations

import copy
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sasgd_fused import checkpoint
from sasgd_fused.backends import candidate_backends
from sasgd_fused.backends.base import Backend
from sasgd_fused.describe import describe
from sasgd_fused.group_lists import ParameterLists, name_as_others
from sasgd_fused.hyperparameters import check_defaults, read_numbers
from sasgd_fused.layers import parameter_name
from sasgd_fused.network import Network
from sasgd_fused.options import (
    BackendName,
    Decay,
    FactorRule,
    Head,
    MomentumDtype,
    Norms,
    Options,
    OutputWidth,
    Rounding,
    Scale,
    dtype_of,
)
from sasgd_fused.parameters import check_distinct, check_group
from sasgd_fused.plan import PlannedLayer
from sasgd_fused.release import GradientRelease
from sasgd_fused.report import LayerReport, make_report
from sasgd_fused.stepper import Stepper


class ScaleAmendedSGD(Optimizer):
    """SGD whose gradients are scaled, layer by layer, by the norm of the weights and a backward factor.

    For the layers b = B..1 of a network, from the output to the input, with m = 1 at the output::

        δ'W_b   = δW_b / m / m_{b,W},    m ← m · m_{b,z}                             (22, 23)
        m_{b,W} = 1 / ‖W_b‖²_{2,μ},      m_{b,z} = ‖W_bᵀ‖²_{2,μ} / ‖W_b‖²_{2,μ}      (24)

    where ‖W‖²_{2,μ} is the mean over the rows (output units) of the squared row norm. The scale of layer b is thus
    s_b = max(‖W_b‖²_{2,μ}, eps) / m_b. Weight decay is added first, momentum is applied last, both as in
    torch.optim.SGD, whose arguments, state and checkpoints this optimizer shares. A layer is a parameter with two or
    more dimensions; rows and columns are its first two, unless its group gives them. Other parameters take the plain
    SGD step.

    With ``scale="relative"``, which is not the paper's, s_b = ‖W_b‖ / √(f_b B v_b), with f_b = elements / rows, B the
    number of scaled layers, and v_b = 0.9 v_b + 0.1 ‖g_b + λ W_b‖² of the steps before. Other parameters of n elements
    are scaled by s = 0.03 √n / √(B v) then. See docs/algorithm.md.

    Args:
        params: tensors, groups, or named parameters, as torch takes them; `parameter_groups` makes groups from a
            model. float32, bfloat16, float16 or float64, dense, on any device; frozen ones may be of any kind.
            Besides the hyperparameters a group may set ``amend`` (False: plain SGD, the layer only keeps its place),
            ``rows`` and ``columns`` (an integer, or a list with one entry for each parameter), and ``heads`` (a list
            that says of each parameter whether it is at one of the network's outputs).
        lr: learning rate, a float or a tensor with one element, which the native kernel reads on the GPU. A first try
            is 0.3 with ``scale="relative"``; with the paper's scale a good SGD lr with ``output_width="mean"``, or
            else that · n_B / (mean rows of the hidden layers).
        momentum: momentum factor μ.
        dampening: dampening τ of the momentum.
        weight_decay: weight decay λ.
        nesterov: Nesterov momentum.
        maximize: ascend instead of descend.
        foreach: True for the ``"foreach"`` backend; False and `fused` False for ``"reference"``.
        fused: True for the ``"native"`` backend or, where it cannot run, ``"triton"``.
        backend: ``"native"``, ``"triton"``, ``"foreach"``, ``"reference"``, or None for the first of them that can run
            the parameters.
        scale: ``"amended"``, the paper's; or ``"relative"``, with which lr has no unit: it is the fraction of a layer's
            output that one step changes at most, times √B. `factors`, `norms` and `output_width` have no part in it.
        factors: the backward factors m_b: ``"width"``, n_B / rows_b, equal to the paper's wherever widths match;
            ``"product"``, equations (22)-(24) literally in the order of the parameters; or a mapping from a
            parameter or its name to m_b.
        head: ``"plain"`` leaves the last layer, or those that the groups' ``heads`` mark, unscaled; ``"amended"``
            scales them, as the paper does.
        decay: ``"amended"``, d_b = s_b λ, as the paper does; ``"shape"``, d_b = λ / m_b.
        norms: ``"track"`` follows the weights; ``"freeze"`` keeps the norms of the first update.
        eps: floor of ‖W‖²_{2,μ}, so that a layer initialised with zeros can move.
        output_width: n_B, if it is not the rows of the head, of the largest if there are several: a number, or
            ``"mean"``, the mean rows of the hidden layers at construction.
        depth: B of the relative scale, if it is not the number of scaled layers.
        master_weights: whether a bfloat16 or float16 parameter has a float32 copy in the state, ``master_weight``,
            which is updated and whose norm is taken; the parameter is that, rounded. Its momentum is float32 too.
        momentum_dtype: torch.bfloat16, or its name, has momentum take half the memory of float32 parameters or masters.
        rounding: of bfloat16 weights and momentum buffers: ``"nearest"``, or ``"stochastic"``, up or down by chance,
            such that the mean is the exact value and small updates are not lost.
        rounding_seed: of the random numbers for that, an integer whose low 64 bits count; the state counts the steps of
            each parameter as ``rounding_step``.
        differentiable: only False.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument or a parameter is not what is wanted; nothing is changed then.
        RuntimeError: the backend asked for cannot run here; the message says why.

    Source: Zhang, Chen, Liu, "On the Local Hessian in Back-propagation", NeurIPS 2018, Algorithm 2.

    Example:
        >>> optimizer = ScaleAmendedSGD(
        ...     parameter_groups(model), lr=0.3, momentum=0.9, weight_decay=5e-4, scale="relative"
        ... )
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        backend: BackendName | None = None,
        scale: Scale = "amended",
        factors: FactorRule | Mapping[Any, float] = "width",
        head: Head = "amended",
        decay: Decay = "amended",
        norms: Norms = "track",
        eps: float = 1e-3,
        output_width: OutputWidth = None,
        depth: int | None = None,
        master_weights: bool = False,
        momentum_dtype: MomentumDtype = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        differentiable: bool = False,
    ) -> None:
        if isinstance(params, nn.Module) and not isinstance(params, nn.ParameterList):
            raise TypeError(f"params: got a {type(params).__name__}, want parameters, as of parameter_groups(model)")
        if isinstance(params, (set, frozenset)):
            raise TypeError(f"params: got a {type(params).__name__}, want an ordered collection, such as a list")
        options = Options(
            factors=factors,
            head=head,
            decay=decay,
            norms=norms,
            eps=eps,
            output_width=output_width,
            scale=scale,
            depth=depth,
            master_weights=master_weights,
            momentum_dtype=dtype_of(momentum_dtype),
            rounding=rounding,
            rounding_seed=rounding_seed,
        )
        self._options = options
        self._is_constructed = False
        candidates = candidate_backends(backend, foreach, fused)
        self._stepper = Stepper(options, candidates, Network(output_width), ParameterLists())
        self._release = GradientRelease(self._update_one)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "amend": True,
            "rows": None,
            "columns": None,
        }
        check_defaults(defaults)
        super().__init__(params, defaults)
        self._stepper.lists.note(self.param_groups)
        self._is_constructed = True
        self._stepper.remake(self.param_groups, self.state)
        # The groups do not have these: they hold for all of them.
        self.defaults.update(self._plain_options())
        self._unscales = bool(fused or backend)
        if fused and not backend and any(param.dtype == torch.float64 for param in self._params()):
            warnings.warn("fused: the kernels take no float64; 'foreach' takes the place of these", stacklevel=2)
        # By zero_redundancy_arguments.
        has_whole_model = (isinstance(factors, Mapping) or depth is not None) and head == "amended"
        if not has_whole_model and _constructing_module() == "torch.distributed.optim.zero_redundancy_optimizer":
            warnings.warn(
                "ZeroRedundancyOptimizer: got ScaleAmendedSGD itself, which sees the parameters of one rank alone, so "
                "that head and backward factors are not the model's; want **zero_redundancy_arguments(model)",
                stacklevel=2,
            )

    def _params(self) -> Iterator[Tensor]:
        return (param for group in self.param_groups for param in group["params"])

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler sets grad_scale and found_inf for a step instead of unscaling the gradients itself.

        As with torch.optim.SGD it does for a fused step that was asked for; also for float16 parameters that are
        trained, whose gradients GradScaler refuses to unscale.
        """
        return self._unscales or any(param.dtype == torch.float16 and param.requires_grad for param in self._params())

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        self._unscales = value

    def __repr__(self) -> str:
        return describe(type(self).__name__, self._options.arguments(), self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group; its layers stand before all others, at the input end.

        Where the other parameters have names, those without get their places as names.

        Raises:
            TypeError, ValueError: the group or one of its parameters is not what is wanted; it is not added then.
        """
        groups = self.param_groups
        if self._is_constructed:
            self._stepper.lists.follow(groups)
        if isinstance(param_group, dict) and not isinstance(param_group.get("params"), set):
            params = [given] if isinstance(given := param_group["params"], Tensor) else list(given)
            param_group["params"] = name_as_others(params, groups)
            check_distinct(param_group["params"])
        super().add_param_group(param_group)
        stepper = self._stepper
        before = copy.copy(stepper.network), stepper.backends
        try:
            self._options.drop_from(param_group, self.defaults)
            check_group(param_group, len(groups) - 1)
            if self._is_constructed:
                stepper.lists.note(groups)
                stepper.network.add(groups)
                stepper.remake(groups, self.state)
        except BaseException:
            groups.pop()
            stepper.network, stepper.backends = before
            stepper.lists = ParameterLists(groups)
            raise

    def name_parameters(self, model: nn.Module) -> None:
        """Names the parameters as the model does, for reports, messages and a mapping of factors.

        For groups that were made without names, by a framework for instance.

        Args:
            model: whose ``named_parameters()`` are among this optimizer's; the others keep their names.

        Raises:
            ValueError: none of this optimizer's parameters is the model's, or a mapping of factors lacks a name.
        """
        names = {param: name for name, param in model.named_parameters()}
        if not any(param in names for param in self._params()):
            raise ValueError(f"model: got a {type(model).__name__} with none of the optimizer's parameters")
        self._stepper.lists.follow(self.param_groups)
        before = [dict(group) for group in self.param_groups]
        for index, group in enumerate(self.param_groups):
            group["param_names"] = [
                names.get(param) or parameter_name(group, index, place) for place, param in enumerate(group["params"])
            ]
        try:
            self._stepper.remake(self.param_groups, self.state)
        except ValueError:  # a mapping of factors goes by the names before
            for group, old in zip(self.param_groups, before, strict=True):
                group.clear()
                group.update(old)
            raise
        self._stepper.lists.note(self.param_groups)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates all parameters that have a gradient.

        Gradients stay as they are. After an overflow seen by a GradScaler nothing is changed.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What the closure returned.

        Raises:
            TypeError, ValueError: a hyperparameter or a gradient is not what is wanted; nothing is updated then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            self._update_outside_graph()
        else:
            self._update()
        return loss

    def _update(self) -> None:
        if self._release.is_on:
            self._release.attach(self._params())
        # GradScaler sets these where `_step_supports_amp_scaling` holds.
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        self._stepper.step(self.param_groups, self.state, scale, found_inf)
        if self._release.is_on:
            self._release.free_waiting()

    def _update_one(self, param: Tensor, is_first: bool) -> bool:
        return self._stepper.step_one(param, is_first, self.param_groups, self.state)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _update_outside_graph(self) -> None:
        # A graph cannot hold addresses and version counters. As one of its operators, a step would have torch count
        # a write to each weight, after which all norms would have to be taken anew.
        self._update()

    def release_gradients_in_backward(self) -> GradientRelease:
        """Makes backward update each parameter as soon as its gradient is there, and free the gradient at once.

        So the gradients of a network are never in memory all together. The norms that the scales need are those that
        the step before left, so an update needs no other parameter. Go on calling `step`, for schedulers and hooks; it
        updates parameters that were given a gradient otherwise.

        Each backward is a step: gradients are not accumulated over several. Gradients from reentrant checkpointing,
        whose parts come one by one, wait for `step`, which takes their sum. A parameter that is new in the groups is
        taken up by the next `step`. What needs all gradients at once does not work with it: clipping by their global
        norm, GradScaler, and the averaging of DistributedDataParallel, which comes after the update.

        Returns:
            A handle; its `remove` ends it. Calling this twice gives the same handle.

        Example:
            >>> optimizer.release_gradients_in_backward()
            >>> loss.backward()  # updates the weights
            >>> optimizer.step()
        """
        self._release.attach(self._params())
        self._current_backends()  # what cannot run is refused here, and not in a backward
        return self._release

    def layer_report(self) -> LayerReport:
        """Returns each layer's norms, backward factor, scale and effective learning rate.

        Masters take over what others wrote into their parameters, as they would in a step.

        Returns:
            A tuple of rows, input first, that prints as a table. Its figures are those of a step taken now.
        """
        backends = self._current_backends()
        if not all(backend.fits() for backend in backends):
            backends = self._stepper.remake(self.param_groups, self.state)
        for backend in backends:
            backend.sync_state()
        return make_report(backends, read_numbers(self.param_groups).on_host(), self._stepper.order)

    def planned_layers(self) -> list[PlannedLayer]:
        """Returns the layers of all devices, with their backward factors."""
        return [planned for backend in self._current_backends() for planned in backend.plan.layers]

    def refresh_norms(self) -> None:
        """Makes the next step take the norms anew from the weights.

        For weights written through ``.data`` or raw pointers, which no version counter shows, and for frozen norms
        (``norms="freeze"``) when other weights were loaded into the model.
        """
        for backend in self._current_backends():
            backend.forget()

    def state_dict(self) -> dict[str, Any]:
        """Returns torch.optim.SGD's state dictionary, with options, frozen norms, masters and counts of rounded steps.

        On a GPU this waits for the device.
        """
        not_started = self._stepper.sync_state()
        self._stepper.lists.follow(self.param_groups)
        params, backends = list(self._params()), self._stepper.backends or []
        first = {param: entry for backend in backends for param, entry in backend.before_updates().items()}
        options = self._plain_options()
        handle = self.register_state_dict_post_hook(
            lambda _, state_dict: checkpoint.complete(state_dict, params, not_started, first, options),
            prepend=True,  # before the user's own hooks
        )
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def _plain_options(self) -> dict[str, Any]:
        if not isinstance(self._options.factors, Mapping):
            return self._options.plain({})
        backends = self._stepper.backends or self._current_backends()  # they know the names
        factors = {
            planned.layer.name: planned.backward_factor for backend in backends for planned in backend.plan.layers
        }
        return self._options.plain(factors)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint of this optimizer or of torch.optim.SGD.

        A checkpoint with one group, made from ``model.parameters()``, also loads into groups made by
        `parameter_groups`. Momentum takes the parameters' layouts, and the dtype that this optimizer stores it in; in
        the relative scale that of another scale is left out, as its unit is the loss's.

        Raises:
            ValueError: groups or shapes do not match, or a parameter's dtype does not go with the options; nothing is
                changed then.
        """
        self._stepper.lists.follow(self.param_groups)
        loading = checkpoint.Loading(self.param_groups, self._options)
        # Between the user's own hooks: after those before loading, before those after it.
        handles = [
            self.register_load_state_dict_pre_hook(loading.adapt),
            self.register_load_state_dict_post_hook(loading.restore_precision, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()
        self._stepper.lists.note(self.param_groups)
        loading.warn(self._plain_options())

    def __getstate__(self) -> dict[str, Any]:
        not_started = self._stepper.sync_state()
        state = super().__getstate__()
        if not_started:
            state["state"] = defaultdict(dict, checkpoint.without_momentum(self.state, set(not_started)))
        return {**state, **{name: self.__dict__[name] for name in _PICKLED if name in self.__dict__}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_stepper" not in self.__dict__:  # from a file of version 0.1
            network = Network(self._options.output_width, self.__dict__.pop("_initial_groups"))
            lists = ParameterLists(self.param_groups)
            self._stepper = Stepper(self._options, self.__dict__.pop("_candidates"), network, lists)
            self._is_constructed = self._unscales = True
        if "_release" not in self.__dict__:
            self._release = GradientRelease(self._update_one)
        self._stepper.backends = None

    def _current_backends(self) -> list[Backend]:
        return self._stepper.current(self.param_groups, self.state)


_PICKLED = ("_options", "_is_constructed", "_stepper", "_unscales")


def _constructing_module() -> str:
    """Returns the name of the module that constructs an optimizer, or one of a subclass."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_name == "__init__":
        frame = frame.f_back
    return str(frame.f_globals.get("__name__"))
