"""When a training job is saved, what of it, and how it goes on from there."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import torch

from lsam_hpc import rma
from lsam_hpc.train.checkpoint import Checkpoints, State
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.job import Chain

POLL = 8  # local steps between two looks for a set that has been called: over a network each costs a round trip
FIRST_SECONDS = 1.0  # what a checkpoint is taken to cost before one was written


class Saver:
    """Checkpoints a chain at step boundaries; making it is collective.

    Args:
        config: the job's options.
        checkpoints: writes the files.
        chain: what is saved.
        seconds: that earlier attempts trained.
    """

    def __init__(self, config: TrainConfig, checkpoints: Checkpoints, chain: Chain, seconds: float) -> None:
        opt = chain.opt
        self.enabled = config.checkpoint_every != "none"  # also without, a job that is stopped is saved
        self._checkpoints, self._chain, self._opt = checkpoints, chain, opt
        self._earlier, self._began = seconds, time.perf_counter()
        self._every = int(config.checkpoint_every) if config.checkpoint_every.isdecimal() else None
        self._mtbf = 3600 * config.mtbf
        # With a period that follows from what is measured, the lowest rank that is left says when a set is due.
        auto = config.checkpoint_every == "auto" and config.schedule != "lockstep"
        self._called = rma.Counter(opt.comm) if auto else None
        self._calls_at = self._began + self._interval()
        self._last = self._number()

    @property
    def seconds(self) -> float:
        """Training time of all attempts."""
        return self._earlier + time.perf_counter() - self._began

    def step(self) -> None:
        """Write a checkpoint if one is due; call it between steps."""
        number = self._due()
        if number is not None:
            self._last = number
            self._checkpoints.write(number, self._state())
        self._checkpoints.tend(self._opt.silent)

    def last(self, step: int, finished: bool) -> None:
        """Write a last set, after all chains have ended; the caller must meet the others before and after.

        Args:
            step: of the set, the same on every rank.
            finished: the job's budget is spent.
        """
        self._checkpoints.write(step, self._state())
        self._checkpoints.wait()
        self._opt.meet()
        self._checkpoints.tend(self._opt.lost, at_once=True, finished=finished)

    def close(self) -> None:
        """Wait for what is being written; collective unless ranks were lost."""
        self._checkpoints.wait()
        if self._called is not None and not self._opt.lost:
            self._called.close()

    def _due(self) -> int | None:
        """Return the number of the set that is due, None if none is."""
        if self._every is not None:
            number = self._number() // self._every * self._every
            return number if number > self._last else None
        if self._called is None:
            return None
        if time.perf_counter() >= self._calls_at:
            self._calls_at = time.perf_counter() + self._interval()
            if self._opt.comm.rank == self._first():
                self._called.add(self._number() - self._called.value)
        if self._opt.local_step % POLL:  # by steps, not by time: a group's ranks must look together
            return None
        called = self._opt.alike(lambda: self._called.value)  # type: ignore[union-attr]
        return called if called > self._last else None

    def _number(self) -> int:
        """Return the total step, in lockstep the same for all ranks at the same step of theirs."""
        opt = self._opt
        return opt.local_step * opt.comm.size if opt.lockstep else opt.total_step

    def _first(self) -> int:
        """Return the lowest rank that is not silent."""
        return min(set(range(self._opt.comm.size)) - set(self._opt.silent), default=0)

    def _interval(self) -> float:
        """Return the seconds between checkpoints that waste least.

        Source: Young 1974, "A first order approximation to the optimum checkpoint interval": sqrt(2 * cost * MTBF).
        """
        return math.sqrt(2 * (self._checkpoints.seconds or FIRST_SECONDS) * self._mtbf)

    def _state(self) -> State:
        opt = self._opt.state_dict()
        if self._opt.shares_center and self._opt.comm.rank > self._first():
            opt["center"]["y"] = None  # another file has it
        return {
            "opt": opt,
            "batches": self._chain.batches.state_dict(),
            "buffers": dict(self._chain.model.named_buffers()),
            "random": _random_state(),
            "seconds": self.seconds,
        }


def resume(chain: Chain, state: State | None, center: State | None) -> None:
    """Make a chain what was saved, or a new chain at the saved center; collective.

    Args:
        chain: just made.
        state: of this rank, None if the set has none of it.
        center: as it was saved; only rank 0's counts.

    Raises:
        InputError: a state does not fit; on all ranks alike.
    """
    opt = chain.opt
    center = opt.comm.bcast(center)
    own = state["opt"] if state is not None else opt.state_dict()
    if state is None:  # a new chain begins at the center
        own["lsam"] |= {"sample": center["y"], "anchor": center["y"], "anchor_version": center["version"]}
    if state is None or own["center"]["y"] is None:
        own["center"] = center
    opt.load_state_dict(own)
    if state is None:
        return
    chain.batches.load_state_dict(state["batches"])
    _set_random_state(state["random"])
    with torch.no_grad():
        for name, buffer in chain.model.named_buffers():
            buffer.copy_(state["buffers"][name])


def _random_state() -> State:
    version, numbers, gauss = random.getstate()
    name, keys, at, has_gauss, cached = np.random.get_state()  # what other code may draw from
    found: State = {
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), at, has_gauss, cached],
    }
    if torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _set_random_state(state: State) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, at, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), at, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
