"""An optimizer's backends: made from its groups, kept as long as they fit, and run."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from sasgd_fused.backends import make_backend
from sasgd_fused.backends.base import Backend
from sasgd_fused.blocks import Block, ParameterLists, check_block_options, find_blocks, find_outputs
from sasgd_fused.options import Options, read_numbers
from sasgd_fused.plan import Structure, make_plans
from sasgd_fused.release import GradientRelease


class SteppingOptimizer(Optimizer):
    """What `ScaleAmendedSGD` does behind what torch expects of an optimizer."""

    def _begin(self, options: Options, candidates: tuple[str, ...]) -> None:
        """Before the groups are added."""
        self._options = options
        self._candidates = candidates
        self._is_constructed = False
        self._original: set[Tensor] = set()  # parameters of groups that were there at construction, or took their place
        self._added: set[Tensor] = set()  # of groups that were added since
        self._originals = 0  # how many groups of the former kind there were at the last look
        self._heads: list[Tensor] = []
        self._output_width = 1.0
        self._matrices: dict[Tensor, tuple[int, int]] = {}  # rows and columns of the blocks
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

    def _find_blocks(self) -> list[Block]:
        """The blocks as they are now.

        The network's outputs are found anew if nothing is left of the network before, or another head is in the place
        of the old one.
        """
        groups = self.param_groups
        added = [index for index, group in enumerate(groups) if self._is_added(index, group["params"])]
        if len(added) == len(groups):  # nothing is left of the network before
            added = []
        of_kind = [set[Tensor](), set[Tensor]()]
        for index, group in enumerate(groups):
            of_kind[index in added].update(group["params"])
        self._original, self._added = of_kind
        self._originals = len(groups) - len(added)
        blocks = find_blocks(groups, added, self._matrices)
        params = {groups[block.group]["params"][block.position]: block for block in blocks}
        is_new = not any(param in self._matrices for param in params)
        has_no_head = not any(head in params for head in self._heads)
        if params and (is_new or (has_no_head and [*params][-1] not in self._matrices)):
            self._heads, self._output_width = find_outputs(params, groups, self._options.output_width)
        elif any(any(group.get("heads") or ()) for group in groups):
            heads, width = find_outputs(params, groups, self._options.output_width)
            self._heads = heads
            self._output_width = self._output_width if self._options.output_width == "mean" else width
        self._matrices = {param: (block.rows, block.columns) for param, block in params.items()}
        self._order = {(block.group, block.position): place for place, block in enumerate(blocks)}
        return blocks

    def _is_added(self, index: int, params: list[Tensor]) -> bool:
        for param in params:
            if param in self._original or param in self._added:
                return param in self._added
        return index >= self._originals > 0

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
        blocks = self._find_blocks()
        plans = make_plans(
            self.param_groups, self._options, blocks, self._heads, self._output_width, apart=self._are_apart
        )
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
