"""`lsam train`: the training loop of one rank, and the table at the end."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from lsam_hpc import rma
from lsam_hpc.distributed import LSAM
from lsam_hpc.errors import InputError
from lsam_hpc.optim import masks
from lsam_hpc.rundir import prepare
from lsam_hpc.runlog import RunLog, describe
from lsam_hpc.train import data
from lsam_hpc.train.config import TrainConfig, parse
from lsam_hpc.train.models import DEFAULT_MODEL, MODELS
from lsam_hpc.train.table import table

RANKS_LOST = 4  # the exit code of a job that ended without some of its ranks
SUBSET = 5000  # training images that the training loss and BatchNorm statistics are computed on at the end


def main(argv: Sequence[str]) -> int:
    """Run `lsam train` on this rank; return its exit code."""
    comm = MPI.COMM_WORLD
    config = rma.agree(comm, lambda: parse(argv))
    for option, value in dataclasses.asdict(config).items():
        rma.same(comm, f"--{option.replace('_', '-')}", value)
    rma.agree(comm, lambda: config.check_links(comm.size))
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    _share_cores(node)
    device = rma.agree(comm, lambda: _device(config.device, node.rank))
    node.Free()
    dataset = rma.agree(comm, lambda: data.load(config.data, config.data_dir))
    model = rma.agree(comm, lambda: _model(config, dataset)).to(device)
    start = datetime.fromtimestamp(comm.bcast(time.time()), timezone.utc)
    named = Path(config.out or f"runs/{config.data}-{start:%Y%m%d-%H%M%S}")
    run_dir = rma.agree(comm, lambda: prepare(named, dataclasses.asdict(config), config.overwrite, comm.rank))
    attributes = describe(comm, json.dumps(dataclasses.asdict(config)), config.seed, start, device)
    layout = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    with rma.agree(comm, lambda: RunLog(run_dir, comm.rank, layout, attributes, config.logs())) as log:
        results, lost = _train(config, model, dataset.to(device), run_dir, log, comm)
    if results:
        print(table(results, lost))
        print(f"run directory: {run_dir}    summary: lsam inspect {run_dir}")
    if lost:
        sys.stdout.flush()
        os._exit(RANKS_LOST)  # MPI_Finalize would wait for the dead
    return 0


def _train(
    config: TrainConfig,
    model: nn.Module,
    dataset: data.Dataset,
    run_dir: Path,
    log: RunLog,
    comm: MPI.Intracomm,
) -> tuple[list[dict[str, float]], list[int]]:
    """Train; return every rank's result, on the lowest rank that is left only, and the ranks that were lost."""
    images = len(dataset.train_y)
    total = config.steps or math.ceil(config.epochs * images / config.batch_size)
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
    batches = _batches(dataset, config.batch_size, config.seed * comm.size + comm.rank)
    clock = time.perf_counter()
    with tqdm(total=total, unit="step", disable=comm.rank > 0, mininterval=1 if sys.stderr.isatty() else 10) as bar:
        for step in opt.steps(total):
            for group in base.param_groups:
                group["lr"] = config.lr * lr_factor(config, step, total)
            x, y = next(batches)

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                base.zero_grad()
                loss = functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            loss = opt.step(closure).item()
            log.step(opt, step, loss)
            if bar.update(min(step + 1, total) - bar.n):
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update(total - bar.n)
    result = {"seconds": time.perf_counter() - clock, **opt.stats()}
    some_x, some_y = dataset.train_x[:SUBSET], dataset.train_y[:SUBSET]
    result["sample_train_loss"], _ = evaluate(model, some_x, some_y)
    _, result["sample_test_error"] = evaluate(model, dataset.test_x, dataset.test_y)
    shared = dict(result)
    opt.meet(list(shared.values()))
    log.last_states(opt)
    while True:
        lost = opt.lost
        first = min(set(range(comm.size)) - set(lost), default=0)
        if comm.rank == first:
            with opt.center(model, some_x.split(256)):
                result["center_train_loss"], _ = evaluate(model, some_x, some_y)
                _, result["center_test_error"] = evaluate(model, dataset.test_x, dataset.test_y)
                _save(model, run_dir / "checkpoints" / "center.pt")
        records = opt.meet(list(shared.values()))
        if opt.lost == lost:
            break  # else the first may be among them: the next one does it
    opt.close()
    log.close(result)
    results = [dict(zip(shared, map(float, row), strict=False)) for row in records["results"]]
    for rank in opt.lost:
        results[rank]["steps"] = float(records["step"][rank])
    results[first] |= result
    return results if comm.rank == first else [], opt.lost


def lr_factor(config: TrainConfig, step: int, total: int) -> float:
    """Return what the learning rate is multiplied by at a total step: a linear rise, then a cosine or nothing."""
    warmup = config.warmup * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.lr_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / (total - warmup), 1)))


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy and the error in % of a model in eval mode; its mode is kept."""
    training = model.training
    model.eval()
    loss, wrong = 0.0, 0
    for images, labels in zip(x.split(512), y.split(512), strict=True):
        logits = model(images)
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        wrong += int((logits.argmax(1) != labels).sum())
    model.train(training)
    return loss / len(y), 100 * wrong / len(y)


def _batches(dataset: data.Dataset, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield mini-batches for ever, each pass over the whole training set in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(dataset.train_y))
    while True:
        order = torch.randperm(len(dataset.train_y), generator=generator).to(dataset.train_y.device)
        for chosen in order.split(size):
            if len(chosen) == size:
                yield dataset.train_x[chosen], dataset.train_y[chosen]


def _model(config: TrainConfig, dataset: data.Dataset) -> nn.Module:
    torch.manual_seed(config.seed)
    _, channels, height, width = dataset.train_x.shape
    model = MODELS[config.model or DEFAULT_MODEL[config.data]]((channels, height, width), dataset.classes)
    if config.mask == "norm":
        masks.Norm(model)  # says so before the run directory is made if there is nothing to perturb
    return model


def _save(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, temporary)
    temporary.replace(path)


def _device(name: str, local_rank: int) -> torch.device:
    """Return where to train: on a node with several GPUs, each rank's own."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("--device: expected a CUDA device, found none that PyTorch can use")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _share_cores(node: MPI.Comm) -> None:
    """Share the cores evenly among the ranks of a node that may use the same, unless OMP_NUM_THREADS is set."""
    cores = sorted(os.sched_getaffinity(0))
    sharing = node.allgather(cores).count(cores)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(cores) // sharing))
