"""Parameters of which each rank holds a part: DTensors, as `fully_shard` (FSDP2) and tensor parallelism make them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from lsam_hpc.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return True for a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # not loaded: there are no DTensors
    return module is not None and isinstance(tensor, module.DTensor)


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return True if one of the tensors is a DTensor."""
    return "torch.distributed.tensor" in sys.modules and any(map(is_sharded, tensors))


def local_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return this rank's part of each tensor, in the same memory; a plain tensor is its own part."""
    return [t._local_tensor if is_sharded(t) else t for t in tensors]


def with_parts(parts: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return DTensors placed as `tensors`, of which this rank holds `parts`; a plain tensor's part is returned."""
    if not any_sharded(tensors):
        return list(parts)
    from torch.distributed.tensor import DTensor

    return [
        DTensor.from_local(part, t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride())
        if is_sharded(t)
        else part
        for part, t in zip(parts, tensors, strict=True)
    ]


def clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of plain tensors and DTensors."""
    # torch's calls on a list of tensors take no mixture of both kinds.
    return [t.clone() for t in tensors] if any_sharded(tensors) else list(torch._foreach_clone(list(tensors)))


def placed_like(tensors: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors with each DTensor distributed over the ranks as its parameter is; collective.

    With tensor parallelism a gradient may be a sum over the ranks that is not taken yet.
    """
    placed = list(tensors)
    for i, (t, p) in enumerate(zip(placed, params, strict=True)):
        if is_sharded(t) and is_sharded(p) and t.placements != p.placements:
            placed[i] = t.redistribute(placements=p.placements)
    return placed


def by_holders(tensors: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Any]]]:
    """Return the parts that this rank holds, and the mesh dimensions over which the ranks hold different parts.

    Returns:
        Pairs of a list of parts and a list of (mesh, dimension) pairs, in the same order on all ranks. The list is
        empty for tensors that each rank holds as a whole. Collective if a DTensor is a sum that is not taken yet.
    """
    holders: dict[Any, list[Tensor]] = {}
    for t in tensors:
        key: Any = ()
        if is_sharded(t):
            t = _summed(t)
            key = tuple((t.device_mesh, i) for i, p in enumerate(t.placements) if not p.is_replicate())
        holders.setdefault(key, []).append(t)
    return [(local_parts(parts), list(key)) for key, parts in holders.items()]


def _summed(tensor: DTensor) -> DTensor:
    """Return a DTensor without a sum over ranks that is not taken yet."""
    from torch.distributed.tensor import Replicate

    if not any(p.is_partial() for p in tensor.placements):
        return tensor
    return tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])


def sum_over(number: Tensor, dimensions: Sequence[Any]) -> Tensor:
    """Return the sum of a scalar over the ranks of mesh dimensions, on its device; collective."""
    device = number.device
    for mesh, dimension in dimensions:
        number = number.to(mesh.device_type)  # of parameters in host memory too, because NCCL sums on GPUs only
        distributed.all_reduce(number, group=mesh.get_group(dimension))
    return number.to(device)


def fully_sharded(model: nn.Module | None) -> list[FSDPModule]:
    """Return the modules of a model that `fully_shard` has sharded."""
    module = sys.modules.get("torch.distributed.fsdp")
    if model is None or module is None or not hasattr(module, "FSDPModule"):
        return []
    return [m for m in model.modules() if isinstance(m, module.FSDPModule)]


def refuse_sharded(name: str, tensors: Iterable[Tensor], reason: str) -> None:
    """Raise InputError that names an argument and a reason if one of the tensors is a DTensor."""
    if any_sharded(tensors):
        raise InputError(f"{name}: expected plain parameters, found DTensors: {reason}")


def refuse_flat(params: Iterable[Tensor]) -> None:
    """Raise InputError if a parameter belongs to FSDP1, with or without `use_orig_params`.

    Its parameters are plain tensors that hold a rank's part, which says nothing about the other parts.
    """
    # torch sets this attribute on flat parameters and on the original ones alike.
    if any(getattr(p, "_fsdp_flattened", False) for p in params):
        raise InputError(
            "base: expected parameters that are whole or DTensors, found FSDP1's (FullyShardedDataParallel): "
            "shard the model by torch.distributed.fsdp.fully_shard"
        )


def check_whole(params: Iterable[Tensor]) -> None:
    """Raise InputError if a parameter is a DTensor, of which a flat vector or a chain would have a part only."""
    refuse_sharded("base", params, "LSAM and its tools need whole parameters on each rank; SAM does not")
