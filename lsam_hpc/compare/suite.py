"""A suite of training runs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsam_hpc.train.config import TrainConfig

Options = Mapping[str, Any]
LOCAL_STEPS = "local_steps"  # a budget's option: steps of each rank
NAME = re.compile(r"[\w.+-]+")
# Options that `SuiteRunner` sets; a suite cannot choose them.
RESERVED = {"out", "overwrite", "resume", "seed", "stragglers", "snapshot_every", "snapshot_states", "snapshot_ranks"}


@dataclass(frozen=True)
class Tuning:
    """How settings are chosen: on images held out of the training set, with equally many runs for each method."""

    validation: int  # images held out
    budget: str
    ranks: int
    seeds: tuple[int, ...]
    grids: Mapping[str, tuple[Options, ...]]  # method -> settings to try


@dataclass(frozen=True)
class Simulation:
    """The machine that a suite runs on, simulated.

    Args:
        machine: a known machine of `lsam simulate`, or a file.
        step: seconds of a step of two passes.
        parameters: elements of the exchanged vector that the times are for.
        hidden: share of a pass that overlaps with an allreduce of gradients. Default 0.5.
    """

    machine: str
    step: float
    parameters: int
    hidden: float = 0.5


@dataclass(frozen=True)
class Cell:
    """One run of a suite."""

    method: str
    budget: str
    ranks: int
    seed: int
    stragglers: str
    options: Options  # of `lsam train`
    trial: int | None = None  # number of the setting, in the tuning

    @property
    def name(self) -> str:
        """Name of its folder, unique within a suite."""
        suffix = "" if self.trial is None else f"-trial{self.trial}"
        return f"{self.budget}-{self.method}-np{self.ranks}-{slug(self.stragglers)}-seed{self.seed}{suffix}"

    @property
    def group(self) -> tuple[str, str, int]:
        """Budget, stragglers and ranks: cells that have the same are compared with each other."""
        return self.budget, self.stragglers, self.ranks


@dataclass(frozen=True)
class Suite:
    """Methods x budgets x rank counts x stragglers x seeds."""

    train: Options  # options of `lsam train` that all runs share
    methods: Mapping[str, Options]
    budgets: Mapping[str, Options]
    ranks: tuple[int, ...]
    stragglers: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str  # method that the others are compared with
    images: int | None  # in a step of all ranks together; None: --batch-size on each
    points: int  # number of points of a curve
    curve_images: int  # test images for each point
    sharpness_images: int  # training images for the sharpness of the final centers; 0: none
    equal_seconds: bool  # run each cell also for as many seconds as the reference took
    tune: Tuning | None
    simulate: Simulation | None = None  # None: real jobs

    def cells(self, tuned: Mapping[str, Options]) -> Iterator[Cell]:
        """Yield the runs at equal samples; runs that are compared with each other follow each other.

        Args:
            tuned: method -> the options chosen for it.
        """
        for budget, stragglers, ranks in itertools.product(self.budgets, self.stragglers, self.ranks):
            for seed, method in itertools.product(self.seeds, self.methods):
                yield self.cell(method, budget, ranks, seed, stragglers=stragglers, more=tuned.get(method, {}))

    def trials(self) -> Iterator[Cell]:
        """Yield the runs of the tuning."""
        if self.tune is None:
            return
        for method, grid in self.tune.grids.items():
            for (trial, chosen), seed in itertools.product(enumerate(grid), self.tune.seeds):
                held_out = {**chosen, "validation": self.tune.validation}
                budget, ranks = self.tune.budget, self.tune.ranks
                cell = self.cell(method, budget, ranks, seed, stragglers="none", more=held_out)
                yield dataclasses.replace(cell, trial=trial)

    def cell(self, method: str, budget: str, ranks: int, seed: int, *, stragglers: str, more: Options) -> Cell:
        """Return a run; `more` overrides the options of the method."""
        share = {} if self.images is None else {"batch_size": self.images // ranks}
        options = {**self.train, **share, **self.budgets[budget], **self.methods[method], **more}
        if (each := options.pop(LOCAL_STEPS, None)) is not None:
            chains = 1 if options.get("synchronous") else ranks // options.get("group_size", 1)
            options["steps"] = each * chains
        return Cell(method, budget, ranks, seed, stragglers, options)


def slug(stragglers: str) -> str:
    """Return a text for stragglers that a file name can contain."""
    return re.sub(r"[^\w.]+", "_", stragglers)


def flags(options: Options) -> list[str]:
    """Return options as command-line flags of `lsam train`."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag}={value}")
    return words


def snapshot_interval(total: float, chains: int, points: int, period: int) -> int:
    """Return the local steps between snapshots of a chain's center that give a curve of `points` points.

    Args:
        total: steps of all chains together.
        chains: number of chains.
        points: number of points, not counting the last.
        period: local steps between exchanges, at which snapshots are taken.
    """
    return max(period, math.floor(total / chains / points))


def settings(cell: Cell, names: Sequence[str] = ("lr", "rho", "pull", "period")) -> str:
    """Return the options of a cell that tuning may have chosen, as text."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    shown = {name: cell.options.get(name, defaults[name]) for name in names}
    return ", ".join(f"{name} {value:g}" for name, value in shown.items() if value is not None)
