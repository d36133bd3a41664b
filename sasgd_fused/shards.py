"""Parameters that are DTensors: the part that this rank holds, and sums over the ranks that hold the others."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# A process group for each dimension of the mesh over which a parameter is dealt out.
ProcessGroups = tuple[Any, ...]


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; as long as nobody has imported these, there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_of(tensor: Any) -> Tensor:
    """This rank's part of a DTensor, always the same object, or a plain tensor itself."""
    local: Tensor = tensor._local_tensor if is_sharded(tensor) else tensor
    return local


def groups_of(tensor: Any) -> ProcessGroups:
    """The process groups over which values of the local parts add up to those of the whole."""
    if not is_sharded(tensor):
        return ()
    mesh = tensor.device_mesh
    return tuple(mesh.get_group(dim) for dim, placement in enumerate(tensor.placements) if not placement.is_replicate())


def part_of(tensor: Any) -> int:
    """A number for the part of a DTensor that this rank holds; the same for ranks that hold the same."""
    part = 0
    if is_sharded(tensor):
        for dim, placement in enumerate(tensor.placements):
            if not placement.is_replicate():
                part = part * tensor.device_mesh.size(dim) + tensor.device_mesh.get_local_rank(dim)
    return part


def local_as(tensor: Any, like: Any) -> Tensor:
    """The local part of a tensor of the whole parameter's shape, dealt out as the parameter is.

    Args:
        tensor: a DTensor, or a plain tensor that every rank has as a whole.
        like: the parameter, a DTensor.
    """
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        tensor = dealt_out(tensor, like)
    if tensor.placements != like.placements:
        local: Tensor = tensor.redistribute(placements=like.placements).to_local()
        return local
    return local_of(tensor)


def dealt_out(tensor: Tensor, like: Any) -> Tensor:
    """The DTensor of a plain tensor that every rank has as a whole, dealt out as a parameter is."""
    from torch.distributed.tensor import distribute_tensor

    # Each rank cuts its part out of what it has. In torch 2.6 the first rank sends all parts, which are the same.
    knows = inspect.signature(distribute_tensor).parameters
    own_data = {"src_data_rank": None} if "src_data_rank" in knows else {}
    return distribute_tensor(tensor, like.device_mesh, like.placements, **own_data)


def whole_of(local: Tensor, like: Any) -> Tensor:
    """The DTensor with this local part, dealt out as a parameter is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


class SumOverRanks:
    """Adds up a vector with one float64 for each parameter, over the ranks that hold parts of it.

    There is one transfer for each set of process groups, always of all its parameters: so a sum has the same bits
    whenever it is taken.

    Args:
        params: the parameters.
        device: of the vectors.
    """

    def __init__(self, params: Sequence[Tensor], device: torch.device) -> None:
        places: dict[ProcessGroups, list[int]] = {}
        for place, param in enumerate(params):
            places.setdefault(groups_of(param), []).append(place)
        self._places = {groups: torch.tensor(of_groups).to(device) for groups, of_groups in places.items() if groups}
        self._under_way: list[tuple[Tensor, Tensor, Any]] = []
        self._total: Tensor | None = None

    def start(self, local: Tensor) -> None:
        """Begins to add up; the last transfer of each set goes on meanwhile."""
        import torch.distributed as dist

        self._total, self._under_way = local.clone(), []
        for groups, places in self._places.items():
            part = local[places]
            for group in groups[:-1]:
                dist.all_reduce(part, group=group)
            self._under_way.append((places, part, dist.all_reduce(part, group=groups[-1], async_op=True)))

    def start_anew(self, local: Tensor, chosen: Tensor) -> None:
        """The same for the sets of process groups with any of the chosen sums; the others' stay as they are.

        Args:
            local: as in `start`.
            chosen: a bool for each sum.
        """
        known, places = self.wait(), self._places
        self._places = {groups: of_groups for groups, of_groups in places.items() if chosen[of_groups].any()}
        try:
            self.start(torch.where(chosen, local, known))
        finally:
            self._places = places

    def wait(self) -> Tensor:
        """The sums, after waiting for them; needs no other rank."""
        assert self._total is not None, "nothing was started"
        for places, part, work in self._under_way:
            work.wait()
            self._total[places] = part
        self._under_way = []
        return self._total


def is_set_anywhere(flag: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether a flag is set on any of the ranks that hold parts of these parameters; waits for them."""
    import torch.distributed as dist

    flag = flag.detach().clone()
    for group in dict.fromkeys(group for param in params for group in groups_of(param)):
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
    return bool(flag.item())
