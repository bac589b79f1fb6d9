"""`lsam train`: the training loop of one rank, and the table at the end."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from mpi4py import MPI
from torch import Tensor

from lsam_hpc import rma
from lsam_hpc.optim.gradients import clear
from lsam_hpc.optim.parts import mesh_of
from lsam_hpc.optim.samples import sample_step
from lsam_hpc.options.logging import LoggingOptions
from lsam_hpc.options.option import part
from lsam_hpc.rundir.lock import lock
from lsam_hpc.rundir.parts import chain_part
from lsam_hpc.rundir.prepare import prepare
from lsam_hpc.rundir.runlog import RunLog, describe
from lsam_hpc.rundir.state_dict import load_model
from lsam_hpc.train import checkpoint
from lsam_hpc.train.builders import lr_factor, make_dataset, make_model, peak_lr, total_steps
from lsam_hpc.train.checkpoint import Checkpoints
from lsam_hpc.train.checkpoint_scheduler import CheckpointScheduler, resume
from lsam_hpc.train.compiler import postpone_compiler
from lsam_hpc.train.config import TrainConfig, parse
from lsam_hpc.train.curvature import CurvatureLog, top_eigenvalue
from lsam_hpc.train.ending import finish
from lsam_hpc.train.job import Chain, make_chain, pick_device, share_cores, start_averaging
from lsam_hpc.train.job_comment import JobComment
from lsam_hpc.train.losses import Batch, batch_loss, sample_losses
from lsam_hpc.train.lost import leave_with
from lsam_hpc.train.profile import Profile, profiled
from lsam_hpc.train.resume_point import find_resume_point
from lsam_hpc.train.sharding import chain_mean, place, stop_torch
from lsam_hpc.train.signals import StopRequest, job_end
from lsam_hpc.train.step_numbers import StepNumbers
from lsam_hpc.train.stragglers import Stragglers
from lsam_hpc.train.tracking import Tracking, trackers
from lsam_hpc.util import launcher
from lsam_hpc.util.log import get_logger
from lsam_hpc.util.progress import Progress

_LOG = get_logger(__name__)
NOT_SAVED = 2  # exit code of a job whose last files are not in the run directory
STOPPED = launcher.STOPPED
RANKS_LOST = 4  # exit code of a job that finished with failed ranks


def main(argv: Sequence[str]) -> int:
    """Run `lsam train` on this rank; return its exit code."""
    postpone_compiler()
    comm = MPI.COMM_WORLD
    config = rma.raise_on_all(comm, lambda: parse(argv))
    options = dataclasses.asdict(config)
    for option, value in options.items():
        rma.require_equal(comm, f"--{option.replace('_', '-')}", value)
    config = rma.raise_on_all(comm, lambda: config.together(comm.size))
    rma.raise_on_all(comm, lambda: config.check_communication(comm.size))
    stragglers = rma.raise_on_all(comm, lambda: Stragglers(config.stragglers, comm.rank, comm.size, config.seed))
    end = comm.bcast(job_end() if comm.rank == 0 else None)  # only rank 0 asks the batch system
    stop_request = rma.raise_on_all(
        comm, lambda: StopRequest([s for s in config.stop_signals.split(",") if s], end, config.end_margin)
    )
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    share_cores(node)
    device = pick_device(config.device, comm, node)
    node.Free()
    dataset = rma.raise_on_all(comm, lambda: make_dataset(config))
    model = rma.raise_on_all(comm, lambda: make_model(config, dataset))
    rma.raise_on_all(comm, lambda: start_averaging(config, device))
    layout = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    now = datetime.fromtimestamp(comm.bcast(time.time()), timezone.utc)
    run_dir = Path(config.out or f"runs/{config.data.replace(':', '-')}-{now:%Y%m%d-%H%M%S}")
    with lock(run_dir, comm, lambda message: _give_up(comm, message)) as held:
        resume_point = find_resume_point(config.resume, options, run_dir, layout, comm, parts=config.parts)
        if config.initial_state is not None and resume_point.manifest is None:
            initial_state = Path(config.initial_state)
            rma.raise_on_all(comm, lambda: load_model(model, initial_state))
        rma.raise_on_all(comm, lambda: place(model, config, device, comm))
        rma.raise_on_all(
            comm, lambda: prepare(run_dir, options, comm.rank, overwrite=config.overwrite, resumed=resume_point.resumed)
        )
        part_of_chain = rma.raise_on_all(comm, lambda: chain_part(model, comm))
        attributes = describe(comm, json.dumps(options), config.seed, resume_point.start or now, device)
        chains = comm.size // config.group_size
        with rma.raise_on_all(
            comm,
            lambda: RunLog(
                run_dir,
                comm.rank,
                layout,
                attributes,
                part(config, LoggingOptions),
                earlier=resume_point.earlier,
                reserve_bytes=checkpoint.BYTES * comm.size * sum(p.numel() for p in model.parameters()),
                steps=math.ceil(total_steps(config, dataset) / chains),
                period=config.period if isinstance(config.period, int) else 1,
                curvature=config.curvature_every > 0,
                taken=resume_point.taken,
                part=part_of_chain,
                earlier_part=resume_point.earlier_part,
            ),
        ) as log:
            profile = Profile(profiled(config.profile), run_dir / "profile" / f"rank-{comm.rank:04d}.json.gz", device)
            chain = make_chain(config, model, dataset.to(device), log, comm)
            opt = chain.opt
            if part_of_chain is not None:
                opt.on_recovery.append(part_of_chain.renew)
                first = comm.rank // chain.parts * chain.parts
                leave_with(frozenset(range(first, first + chain.parts)))
            chain.top_eigenvalue = rma.raise_on_all(comm, lambda: top_eigenvalue(config, model, chain.dataset))
            held.unresponsive = lambda: {*opt.unresponsive_ranks, *opt.failed_ranks}
            held.steps = lambda: opt.communication.links.peers.steps
            held.total = chain.total
            if resume_point.manifest is not None:
                resume(chain, resume_point.state, resume_point.center)
            log.first_states(opt)
            curvature = CurvatureLog(chain, log, config.curvature_every)
            rma.raise_on_all(comm, curvature.first)
            checkpoints = rma.raise_on_all(
                comm,
                lambda: Checkpoints(
                    run_dir / "checkpoints",
                    comm.rank,
                    comm.size,
                    layout=layout,
                    config=options,
                    keep=config.checkpoint_keep,
                    flush=log.flush,
                    parts=chain.parts,
                ),
            )
            scheduler = CheckpointScheduler(config, checkpoints, chain, resume_point.seconds)
            launcher.watch().started()
            if comm.rank == 0:
                nodes = len(set(chain.opt.communication.names))
                where = f"{comm.size} rank{'s' * (comm.size > 1)} on {nodes} node{'s' * (nodes > 1)}"
                _LOG.info("%s, %s steps, run directory %s", where, f"{chain.total:,}", run_dir)
            names = trackers(config.track) if comm.rank == 0 else []
            with JobComment(chain.total, held.speaks) as comment, Tracking(names, run_dir, options) as tracking:
                stopped = _train(
                    config,
                    chain,
                    log,
                    curvature=curvature,
                    scheduler=scheduler,
                    stop_request=stop_request,
                    stragglers=stragglers,
                    profile=profile,
                    comment=comment,
                    tracking=tracking,
                )
                stop_request.ignore_signals()
                launcher.watch().ending()
                ending = finish(chain, run_dir, log, scheduler, checkpoints, stopped=stopped, start=now)
                tracking.end(ending.results)
                if not ending.failed_ranks:
                    stop_torch()
    lost = f" without {len(ending.failed_ranks)} of {comm.size} ranks" * bool(ending.failed_ranks)
    comment.end(("stopped" if stopped else "finished") + lost + ", saved elsewhere" * ending.elsewhere)
    orphaned = launcher.watch().check()
    if ending.elsewhere:
        code = NOT_SAVED
    elif stopped:
        code = STOPPED
    else:
        code = RANKS_LOST if ending.failed_ranks else 0
    if ending.speaks and not ending.elsewhere and not stopped:
        print(f"run directory: {run_dir}    summary: lsam inspect {run_dir}")
    if ending.speaks and code == STOPPED:
        stop_request.asked()  # another rank may have asked for a stop for a reason that this one has too
        reason = stop_request.reason or "by another rank"
        _LOG.info("stopped (%s); continue by lsam train --resume auto --out %s with the same options", reason, run_dir)
        _requeue(config.requeue)
    if ending.failed_ranks or orphaned:
        sys.stdout.flush()
        os._exit(code)  # MPI_Finalize would wait for the failed ranks, or fail without the launcher
    return code


def _give_up(comm: MPI.Intracomm, message: str) -> None:
    """End all ranks at once: another job writes to their run directory."""
    print(f"lsam train: {message}", file=sys.stderr, flush=True)
    comm.Abort(2)


def _train(
    config: TrainConfig,
    chain: Chain,
    log: RunLog,
    *,
    curvature: CurvatureLog,
    scheduler: CheckpointScheduler,
    stop_request: StopRequest,
    stragglers: Stragglers,
    profile: Profile,
    comment: JobComment,
    tracking: Tracking,
) -> bool:
    """Train; return True if the run was stopped before its last step."""
    model, opt, total, peak = chain.model, chain.opt, chain.total, peak_lr(config)
    bf16 = config.precision == "bf16" and config.shard == "none"  # FSDP2 casts the parameters itself
    stop_requested, shown = False, math.nan
    params, mesh = opt.parameters, mesh_of(opt.parameters)

    def closure(batch: Batch) -> Tensor:
        with stragglers.a_pass(batch[0].device):
            clear(params)
            loss = batch_loss(model, batch, bf16=bf16)
            loss.backward()
        return loss

    def done(columns: dict[str, float], values: list[float]) -> None:
        nonlocal shown
        shown, grad_norm, perturbation_norm = values
        log.add_step(**columns, loss=shown, grad_norm=grad_norm, perturbation_norm=perturbation_norm)
        tracking.step(opt, int(columns["total_iteration"]), shown)

    title = "lsam train" if opt.comm.rank == 0 else None
    with Progress(title, total, "step", min(opt.global_step, total)) as bar:
        numbers = StepNumbers(chain.dataset.train_y.device, done)
        for step in opt.steps(total):
            profile.before(opt.local_step)
            for group in opt.param_groups:
                group["lr"] = peak * lr_factor(config, step, total)
            batch = chain.next_batch()
            if chain.selection is None:
                loss = opt.step(closure, batch=batch)
                if mesh is not None:
                    loss = chain_mean(loss, mesh.get_group())
            else:
                losses = sample_losses(model, batch, bf16=bf16)
                loss = sample_step(opt, losses, ids=chain.batches.ids, selection=chain.selection)
            numbers.add(log.columns(opt, step), [loss, opt.grad_norm, opt.perturbation_norm])
            curvature.step(step + 1)
            scheduler.step(numbers.flush)
            comment.step(step + 1)
            if not stop_requested and (stop_request.asked() or (config.on_lost == "stop" and opt.unresponsive_ranks)):
                stop_requested = True
                opt.stop()
            bar.reach(min(step + 1, total), f"loss {shown:.3f}")
        numbers.flush()
        profile.close()
        if not opt.stopped:
            bar.reach(total)
            if config.synchronous:
                opt.exchange()  # the center becomes the present sample
    return opt.stopped


def _requeue(at_most: int) -> None:
    """Requeue the Slurm job, at most `at_most` times."""
    job, done = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if job is None or done >= at_most:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        _LOG.error("--requeue: scontrol requeue %s failed: %s", job, detail)
