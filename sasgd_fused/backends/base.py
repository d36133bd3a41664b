"""What a backend is: the steps of one plan, in two phases, so that nothing is updated before all is checked."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.gradient_norms import KEY, GradientNorms
from sasgd_fused.backends.masters import MasterWeights
from sasgd_fused.backends.norms import Norms
from sasgd_fused.backends.watch import Changes, Watch
from sasgd_fused.factors import decay_scale, layer_scale, relative_scale
from sasgd_fused.hyperparameters import GroupValues, StepNumbers
from sasgd_fused.memory import is_opaque, is_readable
from sasgd_fused.plan import PlannedLayer, State, StepPlan

Gradients = Sequence[Tensor | None]


class Backend:
    """Runs the steps of one plan. One without carried norms overrides `update` alone; see docs/new-backend.md.

    Args:
        plan: the parameters of one device and what is fixed about them.
        state: the optimizer's state; backends keep ``momentum_buffer``, ``master_weight``, ``rounding_step``,
            ``gradient_norm_sq`` and frozen ``row_norm_sq`` in it.
    """

    name = "base"

    def __init__(self, plan: StepPlan, state: State) -> None:
        self.plan = plan
        self.state = state
        self.masters = MasterWeights(plan, state)
        self.norms: Any = Norms(plan, state, self.measure)  # or CarriedNorms, SummedNorms: all report alike
        self.gradient_norms: Any = GradientNorms(plan, state)  # used by the relative scale alone
        self.watch = Watch(plan, state)
        self._is_opaque = any(map(is_opaque, plan.params))
        self._stochastic = {
            k for k, precision in enumerate(plan.precisions) if precision.is_stochastic and plan.params[k].numel()
        }

    @classmethod
    def why_not(cls, device: torch.device, dtypes: Collection[torch.dtype]) -> str | None:
        """Returns why this backend cannot run parameters of these dtypes on the device, or None if it can."""
        return None

    def prepare(self, only: int | None = None) -> Any:
        """Gathers this step's gradients and checks them; changes neither weights nor state.

        Args:
            only: the index of the one parameter to be updated, by default all that have a gradient.

        Returns:
            What `step` takes; None if the parameters are no longer what the plan was made for, and a new plan is
            needed.

        Raises:
            ValueError: a gradient, a momentum buffer or a master does not fit its parameter.
        """
        changes = self.look(only)
        if changes.moved or self._is_opaque or not self.plan.is_current(only):
            if not self.fits():
                return None
            self.watch.note_places()
        if only is None:
            grads = self.plan.gather_gradients()
        else:
            grads = [None] * len(self.plan.params)
            grads[only] = self.plan.gradient_of(only)
        self.plan.check_state(self.state, [index for index, grad in enumerate(grads) if grad is not None])
        return grads, only

    def look(self, only: int | None = None) -> Changes:
        """Returns what others have changed since the last step; has masters compared if that may concern them."""
        changes = self.watch.look(only)
        if changes.may_part_masters():
            self.masters.compare()
        return changes

    def fits(self) -> bool:
        """Returns whether the parameters are still what the plan was made for."""
        return self.plan.is_current() and not self.plan.neighbours.share_otherwise()

    def step(self, prepared: Any, numbers: StepNumbers) -> None:
        """Updates weights and momentum, or nothing at all after an overflow.

        Args:
            prepared: what `prepare` returned.
            numbers: hyperparameters of every group of the optimizer, and what a GradScaler found.
        """
        grads, only = prepared
        active = [index for index, grad in enumerate(grads) if grad is not None]
        if numbers.overflowed():
            return
        self.masters.follow()
        if not active:
            return
        try:
            self.update(grads, numbers.on_host(), numbers.loss_scale())
        finally:  # after an interrupt too: part of the random numbers is used
            for index in self._stochastic.intersection(active):
                self.state[self.plan.params[index]]["rounding_step"] = self.rounding_step_of(index) + 1
            if self.masters:
                self.watch.note_entries(only)
                self.watch.note_written(only)

    def update(self, grads: Gradients, values: Sequence[GroupValues], loss_scale: float) -> None:
        """Does what `step` does without an overflow.

        Args:
            grads: of each parameter of the plan; None leaves it as it is.
            values: hyperparameters of every group of the optimizer.
            loss_scale: what the gradients were multiplied by (GradScaler), else 1.
        """
        raise NotImplementedError

    def sync_state(self) -> None:
        """Brings into the state what so far only the device knows; may wait for it."""

    def not_started(self) -> list[Tensor]:
        """Returns the parameters whose momentum buffer, though it is in the state, has not taken its first gradient.

        A step that was skipped on the device leaves them, and only `sync_state` finds out.
        """
        return []

    def before_updates(self) -> dict[Tensor, dict[str, Any]]:
        """Returns what the state has of norms before a parameter's first update, for those that will have any."""
        if not self.plan.options.is_relative:
            return self.norms.frozen.before_updates()  # type: ignore[no-any-return]
        return {self.plan.params[planned.param]: {KEY: 0.0} for planned in self.plan.layers if planned.scaled}

    def report(self) -> tuple[list[float], list[int]]:
        """Returns ‖W_b‖²_{2,μ} of every layer, as the next step will use it, and how many of its steps were stale."""
        self.look()
        norms, stale = self.norms.report()
        return norms, stale

    def forget(self) -> None:
        """Has norms taken anew, and masters compared with their parameters, which may have been written unseen."""
        self.masters.compare()
        self.norms.forget()

    def parts_of_norms(self, anew: bool) -> Tensor:
        """Returns the sum of squares of each layer's local part / the rows of the whole, float64 on the device.

        Args:
            anew: takes them from the present weights, even if a step has left them.
        """
        self.look()
        # In float64 and in one order whatever the backend: all ranks get the same bits.
        return torch.tensor(Backend.measure(self, self.plan.layers), dtype=torch.float64, device=self.plan.device)

    def parts_of_gradients(self, prepared: Any, numbers: StepNumbers) -> list[float]:
        """Returns q_b of each layer's local part, as a step would take it; 0 for those that it does not update.

        Args:
            prepared: what `prepare` returned.
            numbers: of the step.
        """
        measured = self.measure_gradients(self._gradients_in(prepared), numbers.on_host(), numbers.loss_scale())
        return [measured.get(planned.param, 0.0) for planned in self.plan.layers]

    def _gradients_in(self, prepared: Any) -> Gradients:
        grads: Gradients = prepared[0]
        return grads

    def weight_of(self, index: int) -> Tensor:
        """Returns what is updated of a parameter: its master where it has one, else itself."""
        param = self.plan.params[index]
        return self.state[param]["master_weight"] if self.plan.precisions[index].has_master else param.detach()

    def momentum_of(self, index: int) -> tuple[Tensor, bool]:
        """Returns a parameter's momentum buffer, made if there is none, and whether it has taken a gradient."""
        param, dtype = self.plan.params[index], self.plan.precisions[index].momentum_dtype
        entry = self.state[param]
        has_started = entry.get("momentum_buffer") is not None
        if not has_started:
            entry["momentum_buffer"] = torch.zeros_like(param, dtype=dtype)
        elif entry["momentum_buffer"].dtype != dtype:  # as after model.half()
            entry["momentum_buffer"] = entry["momentum_buffer"].to(dtype)
        return entry["momentum_buffer"], has_started

    def take_scales(
        self, grads: Gradients, values: Sequence[GroupValues], loss_scale: float
    ) -> dict[int, tuple[float, float]]:
        """Returns (s_b, d_b) of each scaled layer that has a gradient, by the index of its parameter.

        Equations (22) and (24), or the relative scale. Keeps the norms as used by a step, where norms freeze.
        """
        options, group_of = self.plan.options, self.plan.group_of
        scaled = [planned for planned in self.plan.layers if planned.scaled and grads[planned.param] is not None]
        if options.is_relative:
            self.gradient_norms.note(self.measure_gradients(grads, values, loss_scale))
        found = {}
        for planned, norm in zip(scaled, self.norms.of(scaled), strict=True):
            group, factor = values[group_of[planned.param]], planned.backward_factor
            if options.is_relative:
                carried = self.gradient_norms.before_step(planned)
                scale = relative_scale(norm, factor, carried, options.eps, planned.is_vector)
                decay = scale * group.weight_decay if self.decays_first(planned) else group.weight_decay
            else:
                self.norms.keep(planned, norm, group.lr != 0)
                scale = layer_scale(norm, factor, options.eps)
                decay = decay_scale(scale, factor, group.weight_decay, options.decay)
            found[planned.param] = scale, decay
        self.gradient_norms.carry()
        return found

    def decays_first(self, planned: PlannedLayer) -> bool:
        """Returns whether the relative scale counts weight decay as a part of the gradient."""
        return self.plan.options.decay == "amended" and not planned.is_vector

    @torch.no_grad()
    def measure_gradients(self, grads: Gradients, values: Sequence[GroupValues], loss_scale: float) -> dict[int, float]:
        """Returns q_b = ‖g_b + λ W_b‖² of each scaled layer that has a gradient, in float64, by its parameter's index.

        Without λ W_b for vectors and ``decay="shape"``. Of sharded layers, the sum of squares of the local part.
        """
        sums: dict[int, Tensor] = {}
        dtype = torch.float32 if self.plan.device.type == "mps" else torch.float64  # which Apple's GPUs lack
        for planned in self.plan.layers:
            grad, group = grads[planned.param], values[self.plan.group_of[planned.param]]
            if grad is None or not planned.scaled:
                continue
            g = grad.to(dtype) * ((-1.0 if group.maximize else 1.0) / loss_scale)
            if group.weight_decay != 0 and self.decays_first(planned):
                g = g + group.weight_decay * self.weight_of(planned.param).to(dtype)
            sums[planned.param] = g.square().sum()
        if not sums or not all(map(is_readable, sums.values())):
            return dict.fromkeys(sums, math.nan)
        return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))

    def rounding_step_of(self, index: int) -> int:
        """Returns how many steps of a parameter have been rounded stochastically, as the state has it."""
        return int(self.state.get(self.plan.params[index], {}).get("rounding_step", 0))

    def measure(self, layers: Sequence[PlannedLayer]) -> list[float]:
        """Returns ‖W_b‖²_{2,μ} = sum of squares / rows of the present weights of layers, in float64."""
        self.masters.follow()
        norms = [self._measure_one(planned) for planned in layers]
        if self.masters and not all(map(math.isfinite, norms)) and self.masters.give_way():
            norms = [self._measure_one(planned) for planned in layers]
        return norms

    def _measure_one(self, planned: PlannedLayer) -> float:
        weight = self.weight_of(planned.param)
        return float(weight.double().square().sum()) / planned.layer.rows if is_readable(weight) else math.nan
