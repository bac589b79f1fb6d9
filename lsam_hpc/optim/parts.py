"""States with parts in place of DTensors, for other processes, and their redistribution over other numbers of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from lsam_hpc.optim.shards import is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

# A part is saved as a dict with these keys: a part of a tensor, the dimension that is sharded, and the shape of the
# whole. It needs no class of torch.
_PART, _DIMENSION, _SHAPE = "part of a sharded tensor", "dimension", "shape"
Part = dict[str, Any]


def part_of(tensor: DTensor) -> Part:
    """Return a copy of this rank's part of a tensor, in host memory."""
    from torch.distributed.tensor import Shard

    (placement,) = tensor.placements
    assert isinstance(placement, Shard)
    part = tensor.to_local().detach().to("cpu", copy=True)
    return {_PART: part, _DIMENSION: placement.dim, _SHAPE: list(tensor.shape)}


def is_part(value: object) -> TypeGuard[Part]:
    """Return True for what `part_of` returns."""
    return isinstance(value, dict) and value.keys() == {_PART, _DIMENSION, _SHAPE}


def copied_to_host(value: Any, copies: dict[int, Any] | None = None) -> Any:  # noqa: ANN401
    """Return a deep copy in host memory, with DTensors as parts; what the value holds twice, the copy does too.

    Args:
        value: tensors, dicts, lists and tuples, and what cannot change.
        copies: copies that were made already, by the id of the object. Default: none.
    """
    copies = {} if copies is None else copies
    if id(value) in copies:
        return copies[id(value)]
    copy = value
    if isinstance(value, torch.Tensor) and is_sharded(value):
        copy = part_of(value)
    elif isinstance(value, torch.Tensor):
        copy = value.detach().to("cpu", copy=True)
    elif isinstance(value, dict):
        copy = {key: copied_to_host(part, copies) for key, part in value.items()}
    elif isinstance(value, (list, tuple)):
        copy = type(value)(copied_to_host(part, copies) for part in value)
    if copy is not value:
        copies[id(value)] = copy
    return copy


def redistributed(values: Sequence[Any], index: int, count: int) -> Any:  # noqa: ANN401 - as the values
    """Return the state of one of the ranks that hold a chain together, given those of as many ranks as held it before.

    Args:
        values: the same part of the state of each rank, in order.
        index: number of the rank.
        count: number of ranks; they hold what `torch.chunk` divides the whole into.

    Returns:
        The state with other parts; what is not in parts is taken from one of the ranks.
    """
    first = values[index % len(values)]
    if is_part(first):
        dimension = first[_DIMENSION]
        whole = torch.cat([value[_PART] for value in values], dimension)
        chunks = whole.chunk(count, dimension)
        part = chunks[index].clone() if index < len(chunks) else whole.narrow(dimension, 0, 0)
        return {**first, _PART: part}
    if isinstance(first, dict):
        return {key: redistributed([value[key] for value in values], index, count) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(redistributed(each, index, count) for each in zip(*values, strict=True))
    return first


def placed(value: Any, mesh: DeviceMesh | None, tensors: dict[int, Tensor] | None = None) -> Any:  # noqa: ANN401
    """Return a state with DTensors in place of its parts.

    Args:
        value: of this rank.
        mesh: the ranks of the chain. None: one rank has the whole, so that its parts are plain tensors.
        tensors: those made already, by the id of the part. Default: none.
    """
    tensors = {} if tensors is None else tensors
    if is_part(value):
        if id(value) not in tensors:
            tensors[id(value)] = _tensor(value, mesh)
        return tensors[id(value)]
    if isinstance(value, dict):
        return {key: placed(part, mesh, tensors) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(placed(part, mesh, tensors) for part in value)
    return value


def mesh_of(parameters: Iterable[Tensor]) -> DeviceMesh | None:
    """Return the device mesh of parameters, None if they are whole."""
    return next((p.device_mesh for p in parameters if is_sharded(p)), None)


def _tensor(part: Part, mesh: DeviceMesh | None) -> Tensor:
    own: Tensor = part[_PART]
    if mesh is None:
        return own
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size(part[_SHAPE])
    stride = torch.empty(shape, device="meta").stride()
    placements = [Shard(part[_DIMENSION])]
    return DTensor.from_local(own.to(mesh.device_type), mesh, placements, run_check=False, shape=shape, stride=stride)
