"""What a training job is made of on one rank: device, model, optimizer, mini-batches."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from mpi4py import MPI
from torch import nn

from lsam_hpc.distributed import LSAM
from lsam_hpc.errors import InputError
from lsam_hpc.optim import masks
from lsam_hpc.runlog import RunLog
from lsam_hpc.train import data
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.models import DEFAULT_MODEL, MODELS


@dataclass
class Chain:
    """A rank's chain and what it trains on."""

    model: nn.Module
    opt: LSAM
    batches: Batches
    dataset: data.Dataset
    total: int  # steps of all ranks together


def make_chain(config: TrainConfig, model: nn.Module, dataset: data.Dataset, log: RunLog, comm: MPI.Intracomm) -> Chain:
    """Return the chain of this rank; collective.

    Args:
        config: the job's options.
        model: on its device, the same on every rank.
        dataset: on the same device.
        log: is told of each exchange.
        comm: the ranks.
    """
    base = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    opt = LSAM(
        base,
        rho=config.rho,
        gamma=config.gamma,
        coupling=config.coupling,  # type: ignore[arg-type]
        pull=config.pull,
        period=config.period,
        stiffness=config.stiffness,
        temperature=config.temperature,
        center_momentum=config.center_momentum,
        schedule=config.schedule,  # type: ignore[arg-type]
        budget=config.budget,  # type: ignore[arg-type]
        seed=config.seed,
        observer=log.exchange,
        witness=log.witness,
        comm=comm,
        ascent=config.ascent,  # type: ignore[arg-type]
        metric=config.metric,  # type: ignore[arg-type]
        mask=masks.Norm(model) if config.mask == "norm" else config.mask,
        model=model,
        **config.links(),
    )
    batches = Batches(dataset.train_x, dataset.train_y, config.batch_size, config.seed * comm.size + comm.rank)
    total = config.steps or math.ceil(config.epochs * len(dataset.train_y) / config.batch_size)
    return Chain(model, opt, batches, dataset, total)


def make_model(config: TrainConfig, dataset: data.Dataset) -> nn.Module:
    """Return the model that the options name, with the seed's weights."""
    torch.manual_seed(config.seed)
    _, channels, height, width = dataset.train_x.shape
    model = MODELS[config.model or DEFAULT_MODEL[config.data]]((channels, height, width), dataset.classes)
    if config.mask == "norm":
        masks.Norm(model)  # says so before the run directory is made if there is nothing to perturb
    return model


def lr_factor(config: TrainConfig, step: int, total: int) -> float:
    """Return what the learning rate is multiplied by at a total step: a linear rise, then a cosine or nothing."""
    warmup = config.warmup * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.lr_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / (total - warmup), 1)))


def pick_device(name: str, node: MPI.Comm) -> torch.device:
    """Return where to train: on a node with several GPUs, each rank's own.

    Args:
        name: auto, cpu or cuda.
        node: the ranks of this node.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("--device: expected a CUDA device, found none that PyTorch can use")
    device = torch.device("cuda", node.rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def share_cores(node: MPI.Comm) -> None:
    """Share the cores evenly among the ranks of a node that may use the same, unless OMP_NUM_THREADS is set."""
    cores = sorted(os.sched_getaffinity(0))
    sharing = node.allgather(cores).count(cores)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(cores) // sharing))
