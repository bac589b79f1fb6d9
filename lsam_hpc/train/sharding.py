"""Shards a job's model over the ranks of each chain, by torch's FSDP2."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor, distributed, nn

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.optim.shards import is_sharded
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.util.affinity import spanning_chains
from lsam_hpc.util.log import get_logger

_LOG = get_logger(__name__)


def place(model: nn.Module, config: TrainConfig, device: torch.device, comm: MPI.Intracomm) -> None:
    """Move a model to its device, or only its parts if the job shards it; collective. Arguments as of `shard`."""
    if config.shard != "none":
        shard(model, config, device, comm)
        return
    model.to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


def shard(model: nn.Module, config: TrainConfig, device: torch.device, comm: MPI.Intracomm) -> None:
    """Shard a model's parameters over neighbouring ranks, `config.parts` of them, in place; collective.

    The blocks of the model, or else its children, are gathered one at a time in a pass.

    Args:
        model: the same on every rank, in host memory: only a rank's parts go to its device.
        config: the job's options.
        device: of this rank.
        comm: all ranks.

    Raises:
        InputError: a parameter has no dimension to shard.
    """
    for name, p in model.named_parameters():
        if p.ndim == 0:
            raise InputError(f"--shard: expected parameters with dimensions, found the scalar {name}")
    hosts = comm.allgather(socket.gethostname())
    if comm.rank == 0 and (spanning := spanning_chains(hosts, config.parts)):
        _LOG.warning(
            "%d of %d chains span nodes, each of which has room for whole chains: place neighbouring ranks on the same "
            "node, as srun --distribution=block does",
            spanning,
            comm.size // config.parts,
        )
    _start_torch(comm, hosts, device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    shape = (comm.size // config.parts, config.parts)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("chains", "shards"))["shards"]
    inner = outer = MixedPrecisionPolicy()
    if config.precision == "bf16":  # the parts remain float32, and so do all sums of gradients
        inner = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        outer = dataclasses.replace(inner, output_dtype=torch.float32)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=inner)
    fully_shard(model, mesh=mesh, mp_policy=outer)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost members of a model's lists and sequences of modules that have parameters."""
    for module in model.children() if not isinstance(model, nn.Sequential) else [model]:
        members = module.children() if isinstance(module, (nn.ModuleList, nn.Sequential)) else []
        yield from (m for m in members if any(True for _ in m.parameters()))


def gathered(state: dict[str, Any], *, keep: bool) -> dict[str, Any]:
    """Return a state dict with whole tensors in host memory; collective in the chain.

    Args:
        state: of the model.
        keep: return the tensors; else only take part, and return an empty dict.
    """
    whole: dict[str, Any] = {}
    for name, value in state.items():  # one at a time: only one whole tensor is on the device
        tensor = value.full_tensor() if isinstance(value, Tensor) and is_sharded(value) else value
        if keep:
            whole[name] = tensor.detach().to("cpu", copy=True) if isinstance(tensor, Tensor) else tensor
    return whole


def chain_mean(loss: Tensor, chain: distributed.ProcessGroup) -> Tensor:
    """Return the mean of a loss over the ranks of a chain; collective in it."""
    total = loss.detach().clone()
    distributed.all_reduce(total, group=chain)
    return total / chain.size()


def stop_torch() -> None:
    """End torch.distributed, if it was started; collective."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _start_torch(comm: MPI.Intracomm, hosts: Sequence[str], device: torch.device) -> None:
    """Start torch.distributed on the ranks of MPI, with a store on rank 0; collective. hosts: of all ranks."""
    host = "localhost" if len(set(hosts)) == 1 else hosts[0]
    make_store = partial(distributed.TCPStore, host, world_size=comm.size, wait_for_workers=False)  # type: ignore[attr-defined]
    store = make_store(port=0, is_master=True) if comm.rank == 0 else None
    port = comm.bcast(None if store is None else store.port)
    store = store or make_store(port=port, is_master=False)
    backend = distributed.get_default_backend_for_device(device)  # without it, a GPU's also where the CPU trains
    distributed.init_process_group(backend, store=store, rank=comm.rank, world_size=comm.size)
    rma.barrier(comm)
