"""Decides when a training job is saved, collects the state, and restores it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI

from lsam_hpc import rma
from lsam_hpc.errors import RankLostError
from lsam_hpc.optim import accelerators
from lsam_hpc.optim.curvature import TopEigenvalue
from lsam_hpc.optim.parts import copied_to_host, mesh_of, placed
from lsam_hpc.optim.samples import ConAdv, Selection
from lsam_hpc.train.checkpoint import Checkpoints, State
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.job import Chain

POLL = 8  # local steps between two reads of the shared step of the next set; over a network each is a round trip
EARLY = 45.0  # s until the first checkpoint at the latest: a job that fails early has something to resume from
FIRST_SECONDS = 1.0  # assumed time to write a checkpoint before the first was written


class CheckpointScheduler:
    """Checkpoints a chain between steps; the constructor is collective.

    Args:
        config: the job's options.
        checkpoints: writes the files.
        chain: to be saved.
        seconds: training time of earlier attempts.
    """

    def __init__(self, config: TrainConfig, checkpoints: Checkpoints, chain: Chain, seconds: float) -> None:
        opt = chain.opt
        self.enabled = config.checkpoint_every != "none"  # a job that is stopped is saved in any case
        self._checkpoints, self._chain, self._opt = checkpoints, chain, opt
        self._earlier, self._began = seconds, time.perf_counter()
        self._every = int(config.checkpoint_every) if config.checkpoint_every.isdecimal() else None
        self._mtbf = 3600 * config.mtbf
        self._auto = config.checkpoint_every == "auto"
        # Sets by time: the lowest responsive rank decides and publishes the step of the next one.
        # In lockstep all ranks save at the same step: each must have read its number before it gets there.
        assert isinstance(config.period, int)  # the command line takes no functions of the step
        self._ahead = POLL + config.period + 1 if opt.lockstep else 0
        self._requested = rma.Counter(opt.comm) if self.enabled else None
        opt.on_recovery.append(self._renew)
        self._request_at = self._began + min(EARLY, self._interval() if self._auto else EARLY)
        self._next = 0  # the published number
        self._start = self._last = self._number()

    @property
    def seconds(self) -> float:
        """Training time of all attempts."""
        return self._earlier + time.perf_counter() - self._began

    def step(self, before: Callable[[], object] = lambda: None) -> None:
        """Write a checkpoint if one is due; call it between steps.

        Args:
            before: called before a checkpoint, to complete the log. Default: does nothing.
        """
        number = self._due()
        if number is not None:
            self._last = number
            before()
            state = self._state()
            self._checkpoints.write(number, state, center=state["opt"]["center"]["y"] is not None)
        if self._checkpoints.pending:
            self._checkpoints.write_manifests(self._opt.unresponsive_ranks)

    def last_state(self) -> State:
        """Return a copy of the state in host memory, after all chains have ended; each rank's holds the center.

        The rank that evaluates may be lost before it writes its file.
        """
        state: State = copied_to_host(self._state(center=True))
        return state

    def close(self) -> None:
        """Wait for the file being written; collective unless ranks have failed."""
        self._checkpoints.wait()
        if self._requested is not None and not self._opt.failed_ranks:
            self._requested.close()

    def _due(self) -> int | None:
        """Return the step of the set that is due, None if none is due."""
        number = self._number()
        if self._every is not None and (due := number // self._every * self._every) > self._last:
            return due
        if self._requested is None or (not self._auto and self._last != self._start):  # the early set is not needed
            return None
        if time.perf_counter() >= self._request_at:
            self._request_at = time.perf_counter() + (self._interval() if self._auto else math.inf)
            if self._opt.comm.rank == self._first():
                self._request(number + self._ahead * self._opt.comm.size)
        if self._opt.local_step % POLL == 0:  # by steps, not by time: the ranks of a group must read at the same step
            self._next = self._opt.survive(lambda: self._opt.alike(self._published))
        reached = self._next <= number or not self._opt.lockstep
        return self._next if self._next > self._last and reached else None

    def _published(self) -> int:
        """Return the step of the set that was requested last."""
        counter: rma.Counter = self._requested  # type: ignore[assignment]
        return self._opt.communication.call(lambda: counter.value)

    def _request(self, at: int) -> None:
        counter: rma.Counter = self._requested  # type: ignore[assignment]
        try:
            self._opt.communication.call(lambda: counter.add(at - counter.value))
        except RankLostError:
            self._request_at = time.perf_counter()  # again, after the recovery

    def _renew(self, comm: MPI.Intracomm) -> None:
        """Publish the steps to the ranks that are left, after ranks were lost."""
        if self._requested is not None:
            self._requested = rma.Counter(comm, comm.allreduce(self._next, MPI.MAX))

    def _number(self) -> int:
        """Return the global step; in lockstep, one that is equal on all ranks at the same local step."""
        opt = self._opt
        return opt.local_step * opt.comm.size if opt.lockstep else opt.global_step

    def _first(self) -> int:
        """Return the lowest responsive rank."""
        return min(set(range(self._opt.comm.size)) - set(self._opt.unresponsive_ranks), default=0)

    def _interval(self) -> float:
        """Return the optimal interval between checkpoints, in seconds.

        Source: Young 1974, "A first order approximation to the optimum checkpoint interval": sqrt(2 * cost * MTBF).
        """
        return math.sqrt(2 * (self._checkpoints.seconds or FIRST_SECONDS) * self._mtbf)

    def _state(self, *, center: bool = False) -> State:
        """Return this rank's state; with `center`, also where the file of another rank holds the center."""
        opt = self._opt.state_dict()
        parts = self._chain.parts
        if not center and self._opt.shares_center and self._opt.comm.rank // parts > self._first() // parts:
            opt["center"]["y"] = None  # the file of the lowest rank holds it, or those of the lowest sharded chain
        return {
            "opt": opt,
            "batches": self._chain.batches.state_dict(),
            **{name: part.state_dict() for name, part in _parts(self._chain).items()},
            "buffers": dict(self._chain.model.named_buffers()),
            "random": _random_state(),
            "seconds": self.seconds,
        }


def resume(chain: Chain, state: State | None, center: State | None) -> None:
    """Restore a chain, or start a new chain at the saved center; collective.

    Args:
        chain: just made.
        state: of this rank, None if the set has no file of it.
        center: the saved center; read on rank 0 only, but of a sharded chain each rank has its part.

    Raises:
        InputError: a state does not fit; on all ranks alike.
    """
    opt = chain.opt
    mesh = mesh_of(chain.opt.parameters)
    center = rma.broadcast(opt.comm, center) if mesh is None else center
    state, center = placed(state, mesh), placed(center, mesh)
    opt_state = state["opt"] if state is not None else opt.state_dict()
    if state is None:  # a new chain begins at the center
        opt_state["lsam"] |= {"sample": center["y"], "anchor": center["y"], "anchor_version": center["version"]}
    if state is None or opt_state["center"]["y"] is None:
        opt_state["center"] = center
    opt.load_state_dict(opt_state)
    if state is None:
        return
    if state["batches"] is not None:  # else the chain had another number of ranks: this one draws anew
        chain.batches.load_state_dict(state["batches"])
    for name, part in _parts(chain).items():
        if name in state or name != "curvature":  # it may be measured from now on
            part.load_state_dict(state[name])
    _set_random_state(state["random"])
    with torch.no_grad():
        for name, buffer in chain.model.named_buffers():
            buffer.copy_(state["buffers"][name])


def _parts(chain: Chain) -> dict[str, Selection | ConAdv | TopEigenvalue]:
    """Return the parts with a state that only some jobs have."""
    parts = {"selection": chain.selection, "adversary": chain.adversary, "curvature": chain.top_eigenvalue}
    return {name: part for name, part in parts.items() if part is not None}


def _random_state() -> State:
    version, numbers, gauss = random.getstate()
    name, keys, at, has_gauss, cached = np.random.get_state()  # user code may draw from numpy's global stream
    states: State = {
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), at, has_gauss, cached],
    }
    return states | accelerators.rng_states()


def _set_random_state(state: State) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, at, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), at, has_gauss, cached))
    accelerators.set_rng_states(state)
