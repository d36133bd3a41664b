"""An optimizer's plans and backends: made from its groups, kept as long as they fit, and run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from operator import is_
from typing import Any

from torch import Tensor

from sasgd_fused.backends import make_backend
from sasgd_fused.backends.base import Backend
from sasgd_fused.group_lists import ParameterLists
from sasgd_fused.hyperparameters import read_numbers
from sasgd_fused.layers import check_layer_options, layer_options
from sasgd_fused.network import Network
from sasgd_fused.options import Options
from sasgd_fused.plan import State, make_plans

Groups = list[dict[str, Any]]


class Stepper:
    """Takes an optimizer's steps.

    A copy of it, or one from a file, makes its backends anew.

    Args:
        options: the optimizer's.
        candidates: the names of the backends that may be taken, the fastest first.
        network: what is known of the network that the groups hold.
        lists: what follows when somebody edits the groups.

    Attributes:
        backends: of all plans; None before they are made.
        order: group and position of each layer → its place, from input to output, vectors behind.
    """

    def __init__(self, options: Options, candidates: tuple[str, ...], network: Network, lists: ParameterLists) -> None:
        self.network = network
        self.lists = lists
        self.order: dict[tuple[int, int], int] = {}
        self.backends: list[Backend] | None = None
        self._options = options
        self._candidates = candidates
        self._places: dict[Tensor, tuple[Backend, int]] = {}
        self._left_out: list[Tensor] = []  # parameters without gradient that no step could update
        self._seen: list[tuple[list[Tensor], tuple[Any, ...]]] = []  # parameters and options of each group
        self._state: State | None = None

    def step(self, groups: Groups, state: State, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Updates all parameters that have a gradient, after all has been checked.

        Args:
            groups: the optimizer's parameter groups.
            state: the optimizer's state.
            grad_scale: what the gradients were multiplied by (GradScaler), or None for 1.
            found_inf: not 0 if nothing is to be changed; None for 0.
        """
        backends = self.current(groups, state)
        numbers = read_numbers(groups, grad_scale, found_inf)
        prepared = []
        for backend in backends:  # no comprehension, which may be a call more
            prepared.append(backend.prepare())
        if None in prepared:
            backends = self.remake(groups, state)
            prepared = [backend.prepare() for backend in backends]
        for backend, ready in zip(backends, prepared, strict=True):
            backend.step(ready, numbers)

    def step_one(self, param: Tensor, is_first: bool, groups: Groups, state: State) -> bool:
        """Updates one parameter; returns whether it is one of these.

        Args:
            param: the parameter, which has a gradient.
            is_first: whether it is the first in its backward pass. Groups and state are not looked at for the others.
            groups: the optimizer's parameter groups.
            state: the optimizer's state.
        """
        if is_first or self.backends is None:
            self.current(groups, state)
        elif any(param is other for other in self._left_out):
            self.remake(groups, state)
        if param not in self._places:
            return False
        numbers = read_numbers(groups)
        backend, index = self._places[param]
        prepared = backend.prepare(index)
        if prepared is None:
            self.remake(groups, state)
            backend, index = self._places[param]
            prepared = backend.prepare(index)
        backend.step(prepared, numbers)
        return True

    def current(self, groups: Groups, state: State) -> list[Backend]:
        """Returns the backends, made anew if groups or state are others than before."""
        if self.backends is None or self._state is not state or not self._have_seen(groups):
            return self.remake(groups, state)
        for param in self._left_out:
            if param.grad is not None:
                return self.remake(groups, state)
        return self.backends

    def remake(self, groups: Groups, state: State) -> list[Backend]:
        """Makes plans and backends anew and returns the latter.

        Raises:
            ValueError, TypeError: a group's options or a parameter are not what is wanted; all stays as it is then.
            RuntimeError: a backend that was asked for cannot run a plan.
        """
        for param in self.sync_state():  # new backends would take these buffers for started
            assert self._state is not None
            del self._state[param]["momentum_buffer"]
        self.lists.follow(groups)
        for group in groups:
            check_layer_options(group)
        layers = self.network.find_layers(groups)
        plans = make_plans(groups, self._options, layers, self.network.heads, self.network.output_width)
        backends = []
        for plan in plans:  # no comprehension, which may be a frame more on a warning's way up
            backends.append(make_backend(plan, state, self._candidates))
        for plan in plans:
            plan.drop_masters(state)
        self.backends, self._state = backends, state
        vectors = [planned.layer for plan in plans for planned in plan.layers if planned.is_vector]
        self.order = {(layer.group, layer.position): place for place, layer in enumerate([*layers, *vectors])}
        self._places = {param: (b, index) for b in backends for index, param in enumerate(b.plan.params)}
        self._left_out = [param for group in groups for param in group["params"] if param not in self._places]
        self._seen = [(list(group["params"]), copy.deepcopy(layer_options(group))) for group in groups]
        return backends

    def sync_state(self) -> list[Tensor]:
        """Brings the state up to date; returns the parameters whose momentum buffers in it have not started."""
        for backend in self.backends or []:
            backend.sync_state()
            backend.norms.warn_if_stale()
        return [param for backend in self.backends or [] for param in backend.not_started()]

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("_options", "_candidates", "network", "lists")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        Stepper.__init__(self, state["_options"], state["_candidates"], state["network"], state["lists"])

    def _have_seen(self, groups: Groups) -> bool:
        """Returns whether the groups have the same parameters, and the same options that decide on layers."""
        if len(groups) != len(self._seen):
            return False
        for group, (params, options) in zip(groups, self._seen, strict=True):
            if len(params) != len(group["params"]) or not all(map(is_, params, group["params"])):
                return False
            if options != (group.get("amend", True), group.get("rows"), group.get("columns"), group.get("heads")):
                return False
        return True
