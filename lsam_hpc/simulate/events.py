"""The events of a simulated run, in order of time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

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
    pending: deque[Event] = deque()
    model = Model(job, machine, seed, pending.append)
    taken = 0
    while True:
        while pending:
            event = pending.popleft()
            if event.time > seconds:
                return
            yield event
            taken += job.group_size * (event.kind == "step")
            if steps is not None and taken >= steps:
                return
        model.env.step()
