"""What checkpoints, failures and the queue make of a long run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import simpy

from lsam_hpc.errors import InputError

REPEATS = 200  # runs that are averaged over


@dataclass(frozen=True)
class Faults:
    """How a job fails and starts again; seconds.

    Args:
        node_mtbf: mean time between failures of a node, exponential; infinite: none.
        every: training time between checkpoints; infinite: none.
        checkpoint: that writing one takes, while the ranks wait.
        requeue: mean from a failure until the job trains again, exponential.
    """

    node_mtbf: float = math.inf
    every: float = math.inf
    checkpoint: float = 0.0
    requeue: float = 0.0


@dataclass(frozen=True)
class Lifetime:
    """Means over the simulated runs; seconds.

    Args:
        wall: from the start to the end.
        failures: their number.
        lost: training time that was done again.
        checkpoints: time that writing them took.
        queued: time without nodes.
    """

    wall: float
    failures: float
    lost: float
    checkpoints: float
    queued: float

    @property
    def held(self) -> float:
        """Seconds that the nodes are held."""
        return self.wall - self.queued


def live(work: float, nodes: int, faults: Faults, seed: int = 0, repeats: int = REPEATS) -> Lifetime:
    """Simulate a job that any node's failure ends, until its work is done.

    After a failure it waits, and goes on from the last checkpoint.

    Args:
        work: seconds of training.
        nodes: any of which may fail.
        faults: how.
        seed: of the failures.
        repeats: runs. Default 200.

    Raises:
        InputError: a number is out of its range, or the job would not end: it fails before it comes to a checkpoint.
    """
    for name in ("node_mtbf", "every"):
        if not getattr(faults, name) > 0:
            raise InputError(f"{name}: expected seconds > 0, found {getattr(faults, name)!r}")
    for name in ("checkpoint", "requeue"):
        if not 0 <= getattr(faults, name) < math.inf:
            raise InputError(f"{name}: expected seconds >= 0, found {getattr(faults, name)!r}")
    mtbf = faults.node_mtbf / nodes
    segment = min(work, faults.every) + faults.checkpoint
    if segment > 12 * mtbf:
        raise InputError(f"every: expected checkpoints before the job fails, every {mtbf:g} s, found {segment:g} s")
    draw = np.random.default_rng(seed)
    runs = np.array([_run(work, mtbf, faults, draw) for _ in range(1 if math.isinf(mtbf) else repeats)])
    return Lifetime(*(float(mean) for mean in runs.mean(0)))


def _run(
    work: float, mtbf: float, faults: Faults, draw: np.random.Generator
) -> tuple[float, float, float, float, float]:
    env = simpy.Environment()
    failures = lost = written = queued = done = 0.0

    def job() -> simpy.events.ProcessGenerator:
        nonlocal failures, lost, written, queued, done
        left = draw.exponential(mtbf) if math.isfinite(mtbf) else math.inf  # until the next failure
        while done < work:
            segment = min(faults.every, work - done)
            last = done + segment >= work
            write = 0.0 if last else faults.checkpoint
            if left >= segment + write:
                yield env.timeout(segment + write)
                left -= segment + write
                done += segment
                written += write
                continue
            yield env.timeout(left)
            failures += 1
            lost += min(left, segment)
            written += max(0.0, left - segment)
            wait = draw.exponential(faults.requeue) if faults.requeue else 0.0
            queued += wait
            yield env.timeout(wait)
            left = draw.exponential(mtbf)

    env.run(env.process(job()))
    return env.now, failures, lost, written, queued
