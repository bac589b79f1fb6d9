"""Duration of a long run with checkpoints, failures and queue waits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import simpy

from lsam_hpc.errors import InputError

REPEATS = 200  # simulated runs in the averages


@dataclass(frozen=True)
class Faults:
    """Failures and restarts of a job; all values in seconds.

    Args:
        node_mtbf: mean time between failures of a node, exponential; infinite: no failures.
        every: training time between checkpoints; infinite: no checkpoints.
        checkpoint: time to write one, during which the ranks wait.
        requeue: mean time from a failure until the job trains again, exponential.
    """

    node_mtbf: float = math.inf
    every: float = math.inf
    checkpoint: float = 0.0
    requeue: float = 0.0


@dataclass(frozen=True)
class Lifetime:
    """Means over the simulated runs; times in seconds.

    Args:
        wall: time from the start to the end.
        failures: number of failures.
        lost: training time that had to be repeated.
        checkpoints: time spent writing checkpoints.
        queued: time without nodes, in the queue.
    """

    wall: float
    failures: float
    lost: float
    checkpoints: float
    queued: float

    @property
    def held(self) -> float:
        """Seconds for which the job has its nodes."""
        return self.wall - self.queued


def live(work: float, nodes: int, faults: Faults, seed: int = 0, repeats: int = REPEATS) -> Lifetime:
    """Simulate a job until its work is done.

    A failure of any node stops it; it then waits in the queue and continues from its last checkpoint.

    Args:
        work: seconds of training.
        nodes: number of nodes.
        faults: how the job fails and restarts.
        seed: seed of the failures.
        repeats: number of simulated runs. Default 200.

    Raises:
        InputError: a number is out of its range, or checkpoints are so rare that the job would hardly ever reach one.
    """
    for name in ("node_mtbf", "every"):
        if not getattr(faults, name) > 0:
            raise InputError(f"{name}: expected seconds > 0, found {getattr(faults, name)!r}")
    for name in ("checkpoint", "requeue"):
        if not 0 <= getattr(faults, name) < math.inf:
            raise InputError(f"{name}: expected seconds >= 0, found {getattr(faults, name)!r}")
    mtbf = faults.node_mtbf / nodes
    segment = min(work, faults.every) + faults.checkpoint
    if segment > (limit := 12 * mtbf):
        raise InputError(f"every: expected checkpoints at most {limit:g} s (12 failures) apart, found {segment:g} s")
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
        time_to_failure = draw.exponential(mtbf) if math.isfinite(mtbf) else math.inf
        while done < work:
            segment = min(faults.every, work - done)
            last = done + segment >= work
            write = 0.0 if last else faults.checkpoint
            if time_to_failure >= segment + write:
                yield env.timeout(segment + write)
                time_to_failure -= segment + write
                done += segment
                written += write
                continue
            yield env.timeout(time_to_failure)
            failures += 1
            lost += min(time_to_failure, segment)
            written += max(0.0, time_to_failure - segment)
            wait = draw.exponential(faults.requeue) if faults.requeue else 0.0
            queued += wait
            yield env.timeout(wait)
            time_to_failure = draw.exponential(mtbf)

    env.run(env.process(job()))
    return env.now, failures, lost, written, queued
