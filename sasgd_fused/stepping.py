"""An optimizer's backends: made from its groups, kept as long as they fit, and run."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from sasgd_fused.backends import make_backend
from sasgd_fused.backends.base import Backend
from sasgd_fused.blocks import check_block_options
from sasgd_fused.group_lists import ParameterLists
from sasgd_fused.hyperparameters import read_numbers
from sasgd_fused.network import Network
from sasgd_fused.options import Options
from sasgd_fused.plan import Structure, make_plans
from sasgd_fused.release import GradientRelease


class SteppingOptimizer(Optimizer):
    """What `ScaleAmendedSGD` does behind what torch expects of an optimizer."""

    def _begin(self, options: Options, candidates: tuple[str, ...]) -> None:
        """Before the groups are added."""
        self._options = options
        self._candidates = candidates
        self._is_constructed = False
        self._network = Network(options.output_width)
        self._lists = ParameterLists()
        self._structure = Structure([])
        self._begin_again()

    def _begin_again(self) -> None:
        """After loading; or in a copy, or from a file, which do not have what is bound to the optimizer itself."""
        self._backends: list[Backend] | None = None
        self._left_out: list[Tensor] = []  # parameters without gradient that no step could update
        self._order: dict[tuple[int, int], int] = {}  # of the blocks, by group and position
        if not hasattr(self, "_release"):
            self._release = GradientRelease(self._update_one)

    def _update(self) -> None:
        backends = self._current_backends()
        if self._release.is_on:
            self._release.attach(param for group in self.param_groups for param in group["params"])
            backends = [backend for backend in backends if backend.plan.params[0].grad is not None]
        self._run(backends)
        self._release.free_waiting()

    def _update_one(self, param: Tensor, is_first: bool) -> bool:
        """Updates a parameter, the first of a backward or another one, if it is this optimizer's; returns whether."""
        if is_first or self._backends is None:
            self._current_backends()
        elif any(param is other for other in self._left_out):
            self._make_backends()
        backend = self._backend_of.get(param)
        if backend:
            self._run([backend])
        return backend is not None

    def _run(self, backends: list[Backend]) -> None:
        numbers = read_numbers(self.param_groups, getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        try:
            if not all(backend.prepare() for backend in backends):
                chosen = {backend.plan.params[0] for backend in backends}
                backends = self._make_backends()
                if self._are_apart:
                    backends = [backend for backend in backends if backend.plan.params[0] in chosen]
                for backend in backends:
                    backend.prepare()
            for backend in backends:
                backend.step(numbers)
        finally:
            for backend in backends:
                backend.release_gradients()

    def _current_backends(self) -> list[Backend]:
        backends = self._backends
        if backends is None or not self._structure.holds_for(self.param_groups):
            return self._make_backends()
        if self._are_apart != self._release.is_on:
            return self._make_backends()
        if any(backend.state is not self.state for backend in backends):  # optimizer.state = ...
            return self._make_backends()
        if any(param.grad is not None for param in self._left_out):
            return self._make_backends()
        return backends

    def _settle(self) -> list[Tensor]:
        """Brings the state up to date; returns the parameters whose momentum buffers in it have not started."""
        backends = self._backends or []
        for backend in backends:
            backend.settle()
            backend.warn_if_stale()
        return [param for backend in backends for param in backend.unstarted()]

    def _make_backends(self) -> list[Backend]:
        self._settle()
        for backend in self._backends or []:
            for param in backend.unstarted():
                del backend.state[param]["momentum_buffer"]
        self._lists.follow(self.param_groups)
        for group in self.param_groups:
            check_block_options(group)
        self._are_apart = self._release.is_on
        network, groups = self._network, self.param_groups
        blocks = network.find_blocks(groups)
        self._order = {(block.group, block.position): place for place, block in enumerate(blocks)}
        plans = make_plans(groups, self._options, blocks, network.heads, network.output_width, apart=self._are_apart)
        backends = []
        for plan in plans:
            backends.append(make_backend(plan, self.state, self._candidates))
        for plan in plans:
            plan.drop_masters(self.state)
        self._backends = backends
        self._backend_of = {backend.plan.params[0]: backend for backend in backends} if self._are_apart else {}
        self._structure = Structure(self.param_groups)
        params = [param for group in self.param_groups for param in group["params"]]
        updated = {param for plan in plans for param in plan.params}
        self._left_out = [param for param in params if param not in updated]
        return backends
