"""The events of a simulated run, in order of time."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from lsam_hpc.errors import InputError
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.simulate.model import Event, Model


def events(
    job: Job, machine: Machine, seconds: float = math.inf, steps: int | None = None, seed: int = 0
) -> Iterator[Event]:
    """Yield the events of a job with a center, in order of simulated time.

    Args:
        job: the job; its `topology` must be `"center"`.
        machine: the machine that it runs on.
        seconds: simulated time after which to stop. Default: no limit.
        steps: local steps of all ranks after which to stop. Default: no limit.
        seed: seed of the random step lengths; the same seed gives the same events.

    Raises:
        InputError: a number is out of its range.
    """
    if job.topology != "center":
        raise InputError(f"topology: expected center in a simulated order, found {job.topology}")
    taken = 0
    for event in _endless(job, machine, seed):
        if event.time > seconds:
            return
        yield event
        taken += {"together": job.ranks, "step": job.group_size}.get(event.kind, 0)
        if steps is not None and taken >= steps:
            return


def _endless(job: Job, machine: Machine, seed: int) -> Iterator[Event]:
    """Yield the events without end: those of the steps together, then those of the chains."""
    began = 0.0
    if job.together:
        one_group = replace(job, together=0, group_size=job.ranks, period=0)
        for event in itertools.islice(_of(one_group, machine, seed), job.together):
            yield replace(event, kind="together")
            began = event.time
    yield from _of(job, machine, seed + bool(job.together), began, job.ranks * job.together)


def _of(job: Job, machine: Machine, seed: int, began: float = 0.0, taken: int = 0) -> Iterator[Event]:
    """Yield the events of a model from a time on, after a number of steps."""
    pending: deque[Event] = deque()
    model = Model(job, machine, seed, pending.append, began=began, taken=taken)
    while True:
        while pending:
            yield pending.popleft()
        model.env.step()
