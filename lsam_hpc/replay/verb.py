"""`lsam simulate ... --train`: trains in the simulated order and prints the results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.replay.bench import Outcome, steps_together
from lsam_hpc.replay.train import train
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.simulate.events import events
from lsam_hpc.simulate.model import Event
from lsam_hpc.train.builders import make_dataset, total_steps
from lsam_hpc.train.config import TrainConfig, parse
from lsam_hpc.train.dataset import Dataset
from lsam_hpc.util.progress import Progress
from lsam_hpc.util.text import columns

SIMULATED = ("period", "coupling", "max_delay")  # options of the simulation that the training takes over
ONE_PASS = ("dp-sat", "msam", "center")  # ascents that need no pass of their own


def replay(
    job: Job, machine: Machine, seed: int, argv: Sequence[str], points: int = 0, *, title: str | None = None
) -> dict[str, Any]:
    """Train in the order of a simulated job, print a table, and return its numbers.

    Args:
        job: has a center and no groups. Its wire type affects the times only: deltas are added in float32.
        machine: the machine that it is simulated on.
        seed: seed of the simulation.
        argv: options of `lsam train`, except those in `SIMULATED`.
        points: number of points of the curve that the result has. Default 0.
        title: of the progress. Default: it is not shown.

    Raises:
        InputError: an option is out of its range, or cannot be replayed.
    """
    for name in SIMULATED:
        flag = f"--{name.replace('_', '-')}"
        if any(word == flag or word.startswith(f"{flag}=") for word in argv):
            raise InputError(f"{flag}: expected before --train, where it is simulated too, found after it")
    if job.period < 1 or job.group_size > 1:
        raise InputError(f"--train: expected a period >= 1 and a group size of 1, found {job.period}, {job.group_size}")
    config = parse(argv)
    for name in SIMULATED:
        value, simulated = getattr(config, name), getattr(job, name)
        if value not in (simulated, getattr(TrainConfig, name)):  # from a file or a recipe
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} {value}: expected before --train too, where it is simulated, found {simulated}")
        config = dataclasses.replace(config, **{name: simulated})
    dataset = make_dataset(config)
    job = simulated_job(job, config, dataset)
    with Progress(title, total_steps(config, dataset), "step") as progress:
        taken = {"together": job.ranks, "step": 1}
        clock = Clock(events(job, machine, seed=seed), lambda event: progress.advance(taken.get(event.kind, 0)))
        outcome = train(config, job.ranks, clock, dataset, points=points)
    results = {**numbers(outcome), "simulated_seconds": clock.now}
    print(columns([("", config.data), *((name.replace("_", " "), f"{value:.4g}") for name, value in results.items())]))
    return {**results, "curve": outcome.curve}


def simulated_job(job: Job, config: TrainConfig, dataset: Dataset) -> Job:
    """Return the job with the steps that the training takes together, and those of one pass."""
    return dataclasses.replace(
        job,
        together=steps_together(config, job.ranks, dataset),
        single=steps_of_one_pass(config, job.ranks, dataset),
        group_ascent=config.group_ascent,
    )


def steps_of_one_pass(config: TrainConfig, ranks: int, dataset: Dataset) -> int:
    """Return the number of steps of all ranks at the start of a run that take one pass instead of two."""
    total = total_steps(config.together(ranks), dataset)
    always = config.rho == 0 or config.ascent in ONE_PASS
    first = total if always else math.ceil(config.rho_from * total)
    return first * (ranks if config.synchronous else 1)


class Clock:
    """Iterates over events and keeps the time of the last one.

    Args:
        events: events in order of time.
        after: called with each event after it was taken. Default: does nothing.
    """

    def __init__(self, events: Iterator[Event], after: Callable[[Event], object] = lambda _: None) -> None:
        self._events, self._after = events, after
        self.now = 0.0

    def __iter__(self) -> Iterator[Event]:
        for event in self._events:
            self.now = event.time
            yield event
            self._after(event)


def numbers(end: Outcome) -> dict[str, float]:
    """Return the numbers to show of a replayed run."""
    delays = [record.delay for records in end.exchanges for record in records]
    staleness = end.staleness
    return {
        "center_test_error_%": end.center_test_error,
        "center_train_loss": end.center_train_loss,
        "samples'_test_error_%": end.sample_test_error,
        "chains": len(end.steps),
        "steps_of_the_slowest": min(end.steps),
        "steps_of_the_fastest": max(end.steps),
        "exchanges": len(staleness),
        "refused": end.refused,
        "staleness_mean": float(np.mean(staleness)) if len(staleness) else 0.0,
        "staleness_max": float(np.max(staleness, initial=0)),
        "delay_mean_steps": float(np.mean(delays)) if delays else 0.0,
    }
