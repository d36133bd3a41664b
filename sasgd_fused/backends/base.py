"""What a backend is: the steps of one plan, in two phases, so that nothing is updated before all is checked."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from sasgd_fused.backends.masters import MasterWeights
from sasgd_fused.hyperparameters import GroupValues, StepNumbers
from sasgd_fused.memory import addresses_of, is_readable
from sasgd_fused.plan import PlannedBlock, State, StepPlan


class Backend:
    """Runs the steps of one plan. Backends without carried norms only override `update`.

    Args:
        plan: the parameters of one device and what is fixed about them.
        state: the optimizer's state; backends keep ``momentum_buffer``, ``master_weight``, ``rounding_step`` and
            frozen ``row_norm_sq`` in it.
    """

    name = "base"

    def __init__(self, plan: StepPlan, state: State) -> None:
        self.plan = plan
        self.state = state
        self.grads: list[Tensor | None] = []
        self._addresses = addresses_of(plan.params)
        self._given: dict[PlannedBlock, float] | None = None  # norms in the place of those of the weights
        self._masters = MasterWeights(plan, state) if plan.has_masters else None
        self._stochastic = {k for k, s in enumerate(plan.storage) if s.is_stochastic and plan.params[k].numel()}

    @classmethod
    def create(cls, plan: StepPlan, state: State) -> Backend:
        """Makes a backend for a plan that `why_not` has no objection to."""
        return cls(plan, state)

    @classmethod
    def why_not(cls, device: torch.device, dtypes: Collection[torch.dtype]) -> str | None:
        """Why this backend cannot run parameters of these dtypes on the device, or None if it can."""
        return None

    def is_current(self) -> bool:
        """Whether the parameters are still what the plan and this were made for."""
        if not self.plan.is_current():
            return False
        addresses = addresses_of(self.plan.params)
        if addresses == self._addresses:
            return True
        self._addresses = addresses
        return not self.plan.neighbours.share_otherwise()

    def prepare(self) -> bool:
        """Gathers this step's gradients and checks them; changes neither weights nor state.

        Returns:
            False if the parameters are no longer what the plan was made for, and a new plan is needed.

        Raises:
            ValueError: a gradient, a momentum buffer or a master does not fit its parameter.
        """
        if not self.is_current():
            return False
        if self.plan.overlaid:
            self.distrust_overlaid()
        self.grads = self.plan.gather_gradients()
        self.plan.check_momentum(self.state)
        if self._masters:
            self.plan.check_masters(self.state)
        return True

    def step(self, numbers: StepNumbers) -> None:
        """Updates weights and momentum from the prepared gradients, or nothing at all after an overflow.

        Args:
            numbers: hyperparameters of every group of the optimizer, and what a GradScaler found.
        """
        if not numbers.overflowed():
            self.update(numbers.on_host(), numbers.loss_scale())

    def update(self, values: Sequence[GroupValues], grad_scale: float) -> None:
        """What `step` does without an overflow, with all numbers read on the host.

        Args:
            values: hyperparameters of every group of the optimizer.
            grad_scale: what the gradients were multiplied by (GradScaler), else 1.
        """
        raise NotImplementedError

    def release_gradients(self) -> None:
        """Lets go of the gradients, so that they are freed when they are set to None."""
        self.grads = []

    def settle(self) -> None:
        """Brings into the state what so far only the device knows; may wait for it."""

    def warn_if_stale(self) -> None:
        """Warns, once, of steps that so far only the device knows to have used norms of other weights; may wait."""

    def unstarted(self) -> list[Tensor]:
        """The parameters whose momentum buffer, though it is in the state, has not taken its first gradient.

        A step that was skipped on the device leaves them, and only `settle` finds out.
        """
        return []

    def weight_of(self, index: int) -> Tensor:
        """What is updated of a parameter, as `follow_parameters` left it: its master where it has one, else itself."""
        param = self.plan.params[index]
        return self.state[param]["master_weight"] if self.plan.storage[index].has_master else param.detach()

    def follow_parameters(self) -> None:
        """Has the masters take over what others wrote into the parameters."""
        if self._masters:
            self._masters.follow()

    def rounding_step_of(self, index: int) -> int:
        """How many steps of a parameter have been rounded stochastically, as the state has it."""
        return int(self.state.get(self.plan.params[index], {}).get("rounding_step", 0))

    def note_rounding(self, active: Sequence[int]) -> None:
        """Counts a step of these parameters in the state, where they are rounded stochastically."""
        for index in self._stochastic.intersection(active) if self._stochastic else ():
            self.state[self.plan.params[index]]["rounding_step"] = self.rounding_step_of(index) + 1

    def unset(self) -> dict[Tensor, dict[str, Any]]:
        """What the state of parameters has of frozen norms before their first update."""
        scaled = [planned for planned in self.plan.blocks if planned.scaled and self.plan.options.freezes_norms]
        return {self.plan.params[planned.param]: {"row_norm_sq": math.nan} for planned in scaled}

    def note_written(self) -> None:
        """Notes that the parameters are what the last step left."""
        if self._masters:
            self._masters.note_written()

    def compare_masters(self) -> None:
        """Has that be looked for anew, because there are writes that no version counter shows."""
        if self._masters:
            self._masters.forget()

    def distrust_overlaid(self) -> None:
        """Looks anew at parameters whose memory others write too, which no version counter may show."""
        self.compare_masters()

    def row_norm_sq(self) -> list[float]:
        """‖W_b‖²_{2,μ} of every block of the plan, as the next step will use it."""
        return self.norms_of(self.plan.blocks)

    def report(self) -> tuple[list[float], list[int]]:
        """`row_norm_sq` and `stale_steps`, in one transfer from a device."""
        return self.row_norm_sq(), self.stale_steps()

    def drive(self) -> None:
        """From now on `take_norms` gives the norms, because the weights are parts of larger ones."""
        self._given = {}

    def measure_all(self) -> Tensor:
        """The sum of squares / rows of each block's present weights, float64 on the plan's device."""
        return torch.tensor(Backend.measure(self, self.plan.blocks), dtype=torch.float64, device=self.plan.device)

    def local_norms(self) -> Tensor:
        """The same after a step, which may know it already."""
        return self.measure_all()

    def take_norms(self, norms: Tensor) -> None:
        """Has the next steps use these norms, one for each block."""
        self._given = dict(zip(self.plan.blocks, norms.tolist(), strict=True))

    def norms_of(self, blocks: Sequence[PlannedBlock]) -> list[float]:
        """The frozen norm of each of these blocks where there is one, else the norm of its present weights."""
        if self._given is not None:
            return [self._given[planned] for planned in blocks]
        norms = [self.frozen_row_norm_sq(planned) for planned in blocks]
        missing = [planned for planned, norm in zip(blocks, norms, strict=True) if norm is None]
        measured = iter(self.measure(missing))
        return [next(measured) if norm is None else norm for norm in norms]

    def stale_steps(self) -> list[int]:
        """How many steps of each block used norms of weights that had been written unseen."""
        return [0] * len(self.plan.blocks)

    def forget_norms(self) -> None:
        """Has the norms taken anew from the weights at the next step, and the masters compared with them."""
        self.compare_masters()
        for planned in self.plan.blocks:
            state = self.state.get(self.plan.params[planned.param])
            if state:
                state.pop("row_norm_sq", None)

    def frozen_row_norm_sq(self, planned: PlannedBlock) -> float | None:
        """The norm kept by ``norms="freeze"``, or None if it tracks the weights or was not taken yet."""
        if not self.plan.options.freezes_norms:
            return None
        norm = self.state.get(self.plan.params[planned.param], {}).get("row_norm_sq")
        return norm if norm is not None and math.isfinite(norm) else None

    def measure(self, blocks: Sequence[PlannedBlock]) -> list[float]:
        """‖W_b‖²_{2,μ} = sum of squares / rows of present weights in float64, before equation (22)."""
        self.follow_parameters()
        weights = [self.weight_of(planned.param) for planned in blocks]
        norms = [
            float(weight.double().square().sum()) / planned.block.rows if is_readable(weight) else math.nan
            for weight, planned in zip(weights, blocks, strict=True)
        ]
        if self._masters and not all(map(math.isfinite, norms)) and self._masters.give_way():
            return self.measure(blocks)
        return norms

    def keep_norm(
        self, planned: PlannedBlock, row_norm_sq: float, lr: float, entry: dict[str, Any] | None = None
    ) -> None:
        """Stores the norm at a block's first update if norms freeze; a step with lr = 0 is no update.

        Such a step leaves a NaN, which is none: by it torch.distributed.checkpoint learns that there is a norm to load.
        A norm that is not finite is none either: whoever puts other weights in the place of those goes on. The norm
        goes to the parameter's entry of the state, or to the given one, which somebody may have moved since.
        """
        if not self.plan.options.freezes_norms or self._given is not None:
            return
        entry = self.state[self.plan.params[planned.param]] if entry is None else entry
        if (kept := entry.get("row_norm_sq")) is None or not math.isfinite(kept):
            entry["row_norm_sq"] = row_norm_sq if lr != 0 else math.nan
