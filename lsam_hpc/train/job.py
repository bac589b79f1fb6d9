"""The parts of a training job on one rank: device, chain, mini-batches."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass

import torch
from mpi4py import MPI
from torch import nn

from lsam_hpc import rma
from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.errors import InputError
from lsam_hpc.optim import accelerators
from lsam_hpc.optim.curvature import TopEigenvalue
from lsam_hpc.optim.samples import ConAdv, Selection
from lsam_hpc.options.communication import CommunicationOptions
from lsam_hpc.options.coupling import StepOptions
from lsam_hpc.options.option import keywords
from lsam_hpc.rundir.runlog import RunLog
from lsam_hpc.train import data
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import (
    augmentation,
    make_adversary,
    make_base,
    make_selection,
    sampler_options,
    synchronous_steps,
    total_steps,
)
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.losses import Batch
from lsam_hpc.util import affinity
from lsam_hpc.util.log import get_logger

_LOG = get_logger(__name__)


@dataclass
class Chain:
    """A rank's chain with its model and data."""

    model: nn.Module
    opt: LSAM
    batches: Batches
    dataset: data.Dataset
    total: int  # steps of all chains together
    selection: Selection | None  # of samples, if the steps use one
    adversary: ConAdv | None  # adds adversarial images to the mini-batches
    top_eigenvalue: TopEigenvalue | None = None  # measures the sharpness
    parts: int = 1  # neighbouring ranks that hold the model together

    def next_batch(self) -> Batch:
        """Return the mini-batch of the next step."""
        return next(self.batches if self.adversary is None else self.adversary)


def make_chain(config: TrainConfig, model: nn.Module, dataset: data.Dataset, log: RunLog, comm: MPI.Intracomm) -> Chain:
    """Return the chain of this rank; collective.

    Args:
        config: the job's options.
        model: on its device, the same on every rank.
        dataset: on the same device.
        log: logs each exchange.
        comm: communicator of all ranks.
    """
    chains = comm.size // config.group_size
    opt = LSAM(
        make_base(config, model),
        **sampler_options(config, model, dataset, chains),
        synchronous_steps=synchronous_steps(config, dataset, chains),
        **keywords(config, StepOptions),
        **keywords(config, CommunicationOptions),
        on_exchange=log.exchange,
        state_callback=log.state_callback,
        comm=comm,
    )
    seed = config.seed * comm.size + comm.rank
    batches = Batches(
        dataset.train_x,
        dataset.train_y,
        config.batch_size,
        seed,
        augmentation(config, dataset),
        channels_last=config.channels_last,
    )
    return Chain(
        model,
        opt,
        batches,
        dataset,
        total_steps(config, dataset),
        make_selection(config, seed),
        make_adversary(config, batches, model, dataset),
        parts=config.parts,
    )


def start_averaging(config: TrainConfig, device: torch.device) -> None:
    """Start Horovod if it averages gradients, in groups or in the synchronous start; collective.

    Raises:
        InputError: Horovod is requested and not installed, or cannot be loaded.
    """
    if config.shard != "none" or config.reduce == "mpi" or (config.group_size == 1 and not config.synchronous_start):
        return
    if config.reduce == "auto" and device.type == "xpu":  # only Intel's Horovod knows such tensors
        return
    try:
        hvd = importlib.import_module("horovod.torch")
    except ModuleNotFoundError as error:
        if config.reduce == "auto":
            return
        raise InputError(
            f"--reduce horovod: expected Horovod (bash tools/install_horovod.sh), found: {error}"
        ) from error
    except ImportError as error:  # a broken Horovod: do not fall back to the slower MPI silently
        raise InputError(f"--reduce: expected a Horovod that can be loaded, or mpi, found: {error}") from error
    hvd.init(process_sets="dynamic")


def pick_device(name: str, comm: MPI.Intracomm, node: MPI.Comm) -> torch.device:
    """Return the device to train on: of those that this rank sees, the one next to its cores; collective.

    Args:
        name: auto, cpu, cuda or xpu.
        comm: all ranks.
        node: this node's ranks.

    Raises:
        InputError: torch cannot use that device here.
    """
    kind = rma.raise_on_all(comm, lambda: accelerators.kind_of(name))
    seen = rma.raise_on_all(comm, lambda: accelerators.addresses(kind))
    ranks = node.allgather((os.sched_getaffinity(0), seen))
    index = affinity.device_indices([cores for cores, _ in ranks], [visible for _, visible in ranks])[node.rank]
    device = torch.device(kind) if kind == "cpu" else torch.device(kind, index)
    if (module := accelerators.module_of(device)) is not None:
        module.set_device(device)
    elif name == "auto" and node.rank == 0 and (unused := affinity.accelerators()):
        _LOG.warning("training on the CPU: torch %s can use none of the %d GPUs here", torch.__version__, len(unused))
    return device


def share_cores(node: MPI.Comm) -> None:
    """Share cores evenly among the ranks of a node that may use the same cores, unless OMP_NUM_THREADS is set."""
    cores = sorted(os.sched_getaffinity(0))
    sharing = node.allgather(cores).count(cores)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(cores) // sharing))
