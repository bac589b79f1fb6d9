"""Runs the cells of a suite in one process each, in the order and the seconds of a simulated machine."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lsam_hpc.compare.measure import load
from lsam_hpc.compare.run import SAME_SECONDS, Record, SuiteRunner
from lsam_hpc.compare.suite import Cell, Options, Suite
from lsam_hpc.errors import InputError
from lsam_hpc.replay.bench import Point
from lsam_hpc.replay.train import check, train
from lsam_hpc.replay.verb import SIMULATED, Clock, numbers, simulated_job
from lsam_hpc.simulate import machines
from lsam_hpc.simulate.describe import Job
from lsam_hpc.simulate.events import events
from lsam_hpc.train.builders import images_per_step, total_steps
from lsam_hpc.train.config import TrainConfig

Column = tuple[str, str, int]  # budget, stragglers, ranks


class SimulatedRunner(SuiteRunner):
    """Runs cells on the clock of a simulated machine; each method is tuned for each column.

    Columns are the rank counts at equal samples, and with `equal_seconds` rank counts x stragglers at equal seconds.

    Args:
        suite: the suite to run; it has a simulated machine.
        out: as of `SuiteRunner`.
        start: without effect.
        say: as of `SuiteRunner`.

    Raises:
        InputError: as `SuiteRunner`; or the suite cannot be simulated.
    """

    def __init__(self, suite: Suite, out: Path, start: Callable[[int], list[str]], say: Callable[[str], None]) -> None:
        assert suite.simulate is not None
        self._machine = machines.load(suite.simulate.machine)
        for stragglers in suite.stragglers:
            slowed(stragglers, 1, suite.simulate.step)
        if not suite.equal_seconds and len(suite.stragglers) > 1:
            raise InputError(
                f"stragglers: expected one of them at equal samples, which take the same steps with all, found "
                f"{', '.join(suite.stragglers)}"
            )
        self._grids = {} if suite.tune is None else suite.tune.grids
        for method in suite.methods:
            cell = suite.cell(method, next(iter(suite.budgets)), suite.ranks[0], 0, stragglers="none", more={})
            check(_config(cell))
        super().__init__(suite, out, start, say)

    def tuned(self) -> dict[str, Options]:
        """Run the tuning, and return the setting of each column and method with the lowest error on held-out images."""
        errors: dict[str, dict[int, list[float]]] = {}
        for record in self.trials():
            cell = Cell(**record["cell"])
            assert cell.trial is not None
            of_setting = errors.setdefault(_key((cell.budget, cell.stragglers, cell.ranks), cell.method), {})
            of_setting.setdefault(cell.trial, []).append(record["result"]["center_test_error"])
        best = {key: min(found, key=lambda trial: statistics.fmean(found[trial])) for key, found in errors.items()}
        return {key: self._grids[key.rpartition(": ")[2]][trial] for key, trial in best.items()}

    def records(self, tuned: Mapping[str, Options]) -> list[Record]:
        """Run all cells with the chosen settings; return their results."""
        suite = self._suite
        return [
            self._one(self._cell(column, method, seed, tuned.get(_key(column, method), {})))
            for column in self._columns()
            for seed in suite.seeds
            for method in suite.methods
        ]

    def trials(self) -> list[Record]:
        """Return the results of the tuning."""
        if (tune := self._suite.tune) is None:
            return []
        return [
            self._one(self._trial(column, method, seed, trial, chosen))
            for column in self._columns()
            for method, grid in tune.grids.items()
            for trial, chosen in enumerate(grid)
            for seed in tune.seeds
        ]

    def _columns(self) -> Iterator[Column]:
        suite = self._suite
        for budget in suite.budgets:
            for ranks in suite.ranks:
                yield budget, suite.stragglers[0], ranks  # at equal samples the order of events matters little
            if suite.equal_seconds:
                for stragglers in suite.stragglers:
                    for ranks in suite.ranks:
                        yield budget + SAME_SECONDS, stragglers, ranks

    def _trial(self, column: Column, method: str, seed: int, trial: int, chosen: Options) -> Cell:
        assert self._suite.tune is not None
        cell = self._cell(column, method, seed, {**chosen, "validation": self._suite.tune.validation})
        return dataclasses.replace(cell, trial=trial)

    def _cell(self, column: Column, method: str, seed: int, more: Options) -> Cell:
        """Return a cell; at equal seconds with as many steps as fit into the reference's seconds."""
        budget, stragglers, ranks = column
        same_seconds = budget.endswith(SAME_SECONDS) and budget not in self._suite.budgets
        samples = budget.removesuffix(SAME_SECONDS) if same_seconds else budget
        suite = self._suite
        cell = suite.cell(method, samples, ranks, seed, stragglers=stragglers, more=more)
        if not same_seconds:
            return cell
        reference = suite.cell(suite.reference, samples, ranks, seed, stragglers=stragglers, more={})
        # Tuning holds images out: without this, its runs would be shorter.
        held_out = {"validation": more["validation"]} if "validation" in more else {}
        reference = dataclasses.replace(reference, options={**reference.options, **held_out})
        steps = _steps_within(cell, _seconds(reference, suite), suite)
        options = {name: value for name, value in cell.options.items() if name != "epochs"} | {"steps": steps}
        return dataclasses.replace(cell, budget=budget, options=options)

    def _results(self, cell: Cell) -> tuple[dict[str, Any], list[Point]]:
        config, dataset = _config(cell), load(_config(cell))
        clock = Clock(events(_job(cell, self._suite), self._machine, seed=cell.seed))
        outcome = train(
            config, cell.ranks, clock, dataset, points=self._suite.points, curve_images=self._suite.curve_images
        )
        together = config.together(cell.ranks)
        total = total_steps(together, dataset)
        result = numbers(outcome)
        return {
            "center_test_error": outcome.center_test_error,
            "center_train_loss": outcome.center_train_loss,
            "seconds": clock.now,
            "total_steps": total,
            "images_per_second": total * images_per_step(together) / clock.now,
            "staleness_mean": result["staleness_mean"],
            "refused": outcome.refused,
        }, outcome.curve


def _key(column: Column, method: str) -> str:
    budget, stragglers, ranks = column
    return f"{budget}, stragglers {stragglers}, {ranks} ranks: {method}"


def _config(cell: Cell) -> TrainConfig:
    return TrainConfig(**cell.options, seed=cell.seed)


def _job(cell: Cell, suite: Suite) -> Job:
    """Return the simulated job of a cell."""
    assert suite.simulate is not None
    config, machine = _config(cell), suite.simulate
    job = Job(
        ranks=cell.ranks,
        parameters=machine.parameters,
        step=machine.step,
        hidden=machine.hidden,
        **{name: getattr(config, name) for name in SIMULATED},
        **slowed(cell.stragglers, cell.ranks, machine.step),
    )
    return simulated_job(job, config, load(config))


def slowed(stragglers: str, ranks: int, step: float) -> dict[str, Any]:
    """Return stragglers, as of `lsam train`, as options of a job.

    Args:
        stragglers: factors of ranks, and pauses, which are drawn per second, as often as per pass on average.
        ranks: number of ranks.
        step: seconds of a step of two passes.

    Raises:
        InputError: they cannot be simulated.
    """
    factors: dict[int, float] = {}
    options: dict[str, Any] = {"factors": factors}
    for part in [] if stragglers == "none" else stragglers.split(","):
        kind, *values = part.split(":")
        if kind == "pause":
            chance, options["pause"] = map(float, values)
            options["pause_every"] = step / 2 / chance if chance else math.inf
        elif kind == "spread":
            raise InputError(f"stragglers: expected no spread on a simulated machine, found {part}")
        else:
            rank = int(kind) % ranks
            factors[rank] = factors.get(rank, 1.0) * float(values[0])
    return options


def _seconds(cell: Cell, suite: Suite) -> float:
    """Return the seconds that a cell takes on the simulated machine."""
    assert suite.simulate is not None
    config = _config(cell)
    steps = total_steps(config.together(cell.ranks), load(config)) * (cell.ranks if config.synchronous else 1)
    return _simulated_seconds(suite.simulate.machine, _Hashable(_job(cell, suite)), steps, cell.seed)


@cache
def _simulated_seconds(machine: str, job: _Hashable, steps: int, seed: int) -> float:
    """Return the time when the last of `steps` steps of all ranks ends; a rank begins no step once all have begun."""
    ranks = job.job.ranks
    begun, active, now = 0, set(range(ranks)), 0.0
    for event in events(job.job, machines.load(machine), seed=seed):
        now = event.time
        if event.kind == "together":
            begun += ranks
            if begun >= steps:
                break
        elif event.kind == "step" and event.rank in active:
            if begun == ranks * job.job.together:
                begun += ranks  # the first step of each chain
            begun += 1
            if begun > steps:
                active.discard(event.rank)
                if not active:
                    break
    return now


class _Hashable:
    """A job as a key: its factors are a dict."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._key = repr(job)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self._key == other._key


def _steps_within(cell: Cell, seconds: float, suite: Suite) -> int:
    """Return the largest number of steps of a cell that take at most the given seconds, to a step of each rank."""
    config = _config(cell)
    total = total_steps(config.together(cell.ranks), load(config))
    round_of_steps = 1 if config.synchronous else cell.ranks

    def taken(steps: int) -> float:
        options = {name: value for name, value in cell.options.items() if name != "epochs"} | {"steps": steps}
        return _seconds(dataclasses.replace(cell, options=options), suite)

    steps = total
    for _ in range(3):  # the seconds are nearly proportional to the steps
        steps = max(1, math.floor(steps * seconds / taken(steps)))
    while steps > round_of_steps and taken(steps) > seconds:
        steps -= round_of_steps
    return steps
