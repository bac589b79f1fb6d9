"""The simulated order of events, for who wants to do something in it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lsam_hpc.errors import InputError
from lsam_hpc.simulate.describe import Job, Machine

Kind = Literal["step", "stage", "read", "add", "apply"]


@dataclass(frozen=True)
class Event:
    """Something that happens to a rank (of groups: to a chain, by its number).

    * `"step"`: a local step ends; `step` counts it. Results that are there are taken in now, and if an exchange is due,
      the `"stage"` follows.
    * `"stage"`: its sample is copied for an exchange. Of this and what follows of the same exchange, `step` is the
      number of local steps done at the staging. Results that came since the `"step"` (a chain with `max_delay`
      exchanges in flight waits for one) are taken in before the sample is staged.
    * `"read"`: the exchange's read of the center takes effect; elastic only: kernel and restart read right after
      `"add"`.
    * `"add"`: the exchange's delta is in the center.
    * `"apply"`: its result is there for the training thread, which takes it in at the rank's next `"step"` or
      `"stage"`.
    """

    time: float  # seconds since the start
    rank: int
    kind: Kind
    step: int


def events(
    job: Job, machine: Machine, seconds: float = math.inf, steps: int | None = None, seed: int = 0
) -> Iterator[Event]:
    """Yield what happens in a job with a center, in order of simulated time.

    Args:
        job: its `topology` is `"center"`.
        machine: that it runs on.
        seconds: of simulated time to stop after. Default: no limit.
        steps: local steps of all ranks to stop after. Default: no limit.
        seed: of the random lengths; the same seed gives the same events.

    Raises:
        InputError: a number is out of its range.
    """
    from lsam_hpc.simulate.model import Model  # it tells events, and so knows this module

    if job.topology != "center":
        raise InputError(f"topology: expected center for its events, found {job.topology}")
    told: deque[Event] = deque()
    model = Model(job, machine, seed, told.append)
    taken = 0
    while True:
        while told:
            event = told.popleft()
            if event.time > seconds:
                return
            yield event
            taken += job.group_size * (event.kind == "step")
            if steps is not None and taken >= steps:
                return
        model.env.step()
