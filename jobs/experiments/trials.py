"""Tries changes of LSAM, with options and without, and prints a table: ten minutes on two cores.

    python jobs/experiments/trials.py DATA_DIR [OUT.csv]     # Fashion-MNIST's four files

Eight chains in one process take steps in turn, and results of exchanges arrive a step late. All trials take as many
passes as data-parallel SAM in three epochs, as if all ranks were equally fast. Errors are on held-out images.
"""

import csv
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.options.recipes import RECIPES
from lsam_hpc.replay.bench import Bench, replay
from lsam_hpc.replay.chain import Player
from lsam_hpc.replay.verb import steps_of_one_pass
from lsam_hpc.simulate.model import Event
from lsam_hpc.train.builders import lr_factor, make_dataset, total_steps
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.util.arguments import Parser

DATA, VALIDATION, EPOCHS, SEEDS = "fashion-mnist", 5000, 3.0, 3
RANKS, IMAGES = 8, 64  # images on each rank

RECIPE: dict[str, Any] = {**RECIPES["large-batch"], "lr": 0.2, "rho": 0.05}


class Predicted(LocalCenter):
    """A center that a chain reads as it will be, if it moves on as since the chain's last read.

    Source: Kosson et al. 2021, "Pipelined Backpropagation at Scale" (arXiv 2003.11666), the prediction of weights.
    """

    turn_of = 0

    def __init__(self, start: Tensor) -> None:
        super().__init__(start)
        self._reads = [start.clone() for _ in range(RANKS)]

    def read(self, out: Tensor) -> int:
        """Copy 2 y - the y that this chain read last."""
        before = self._reads[self.turn_of]
        torch.sub(2 * self.vector, before, out=out)
        before.copy_(self.vector)
        return self.version


class Pushing(LocalCenter):
    """A center from which a chain restarts at a distance, on the side where the chain was.

    Args:
        start: initial y.
        distance: as a fraction of |y|.

    Source: Dimlioglu & Choromanska 2025 (DPPF, arXiv 2507.20424): a push of constant length away from the center.
    """

    turn_of = 0

    def __init__(self, start: Tensor, distance: float) -> None:
        super().__init__(start)
        self._distance = distance
        self._gaps = torch.zeros(RANKS, len(start))

    def add(self, delta: Tensor) -> int:
        """Add, and keep the direction of the chain whose turn it is."""
        self._gaps[self.turn_of] = delta
        return super().add(delta)

    def read(self, out: Tensor) -> int:
        """Copy y + a push along the chain's last delta."""
        gap = self._gaps[self.turn_of]
        length = self._distance * float(self.vector.norm()) / max(float(gap.norm()), 1e-12)
        torch.add(self.vector, gap, alpha=length, out=out)
        return self.version


@dataclass(frozen=True)
class Trial:
    """A variant to try.

    Args:
        name: name in the table.
        options: options of `lsam train` that differ from the recipe's.
        period: of the learning rate's factor, from 0 to 1. Default: the option's.
        pull: factor on the recipe's, of the learning rate's factor. Default: 1.
        make_center: makes the center.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    period: Callable[[float], int] | None = None
    pull: Callable[[float], float] | None = None
    make_center: Callable[[Tensor], LocalCenter] = LocalCenter


def quadratic(a: float, factor: float) -> int:
    """Return max(1, (a / factor)^2), at most 16: Gu et al. 2023, the quadratic synchronization rule (2310.14423)."""
    return max(1, min(16, int((a / max(factor, 1e-6)) ** 2)))


def same(factor: float) -> float:
    """Return the factor."""
    return factor


SAM = {"synchronous": True, "lr": 0.1, "coupling": "elastic", "momentum": 0.9, "synchronous_start": 0.0, "rho": 0.02}
EASGD_FORM = {"coupling": "elastic"}
TRIALS = (
    Trial("data-parallel SAM", {**SAM, "rho_from": 0.0}),
    Trial("data-parallel SAM, averaged ascent", {**SAM, "rho_from": 0.0, "group_ascent": "averaged"}),
    Trial("data-parallel SAM in the last quarter", SAM),
    Trial("the recipe"),
    Trial("no synchronous start", {"synchronous_start": 0.0}),
    Trial("synchronous start 0.2", {"synchronous_start": 0.2}),
    Trial("synchronous start 0.4", {"synchronous_start": 0.4}),
    Trial("rho from the start", {"rho_from": 0.0}),
    Trial("rho from the start, all steps synchronous", {"rho_from": 0.0, "synchronous_start": 1.0}),
    Trial("all steps synchronous", {"synchronous_start": 1.0}),
    Trial("rho in the last half", {"rho_from": 0.5}),
    Trial("rho in the last tenth", {"rho_from": 0.9}),
    Trial("no ascent", {"rho": 0.0}),
    Trial("ascent center, one pass", {"rho_from": 0.0, "ascent": "center"}),
    Trial("ascent msam, one pass", {"rho_from": 0.0, "ascent": "msam"}),
    Trial("ascent dp-sat, one pass", {"rho_from": 0.0, "ascent": "dp-sat"}),
    Trial("momentum 0.9", {"momentum": 0.9}),
    Trial("momentum 0.9, lr 0.1", {"momentum": 0.9, "lr": 0.1}),
    Trial("momentum 0.5, lr 0.4", {"momentum": 0.5, "lr": 0.4}),
    Trial("period 2", {"period": 2}),
    Trial("period 4", {"period": 4}),
    Trial("period max(1, (0.2 / lr factor)^2)", period=partial(quadratic, 0.2)),
    Trial("period max(1, (0.5 / lr factor)^2)", period=partial(quadratic, 0.5)),
    Trial("elastic, period 4", {**EASGD_FORM, "period": 4}),
    Trial("elastic", EASGD_FORM),
    Trial("elastic, pull 0.5", {"coupling": "elastic", "pull": 0.5}),
    Trial("elastic, pull 0.5 that follows lr", {"coupling": "elastic", "pull": 0.5}, pull=same),
    Trial("exchanges at once", {"overlap": False}),
    Trial("center momentum 0.5", {"center_momentum": 0.5}),
    Trial("center predicted", make_center=Predicted),
    Trial("chains pushed away by 0.02 of the norm of y", make_center=partial(Pushing, distance=0.02)),
    Trial("chains pushed away by 0.1 of the norm of y", make_center=partial(Pushing, distance=0.1)),
)


def configure(trial: Trial, seed: int, folder: str) -> TrainConfig:
    """Return the options of a trial, with as many steps as take the passes of data-parallel SAM."""
    options = RECIPE | {"epochs": EPOCHS, "data": DATA, "validation": VALIDATION, "seed": seed, "batch_size": IMAGES}
    config = TrainConfig(data_dir=folder, model="mlp", **(options | trial.options))
    dataset = make_dataset(config)
    total = total_steps(config.together(RANKS), dataset)
    single = steps_of_one_pass(config, RANKS, dataset) / (RANKS if config.synchronous else 1)
    return replace(config, steps=round(total * 2 / (2 - single / total)))


def run(trial: Trial, seed: int, folder: str) -> float:
    """Return the error in % on the held-out images of one trial."""
    torch.set_num_threads(1)
    config = configure(trial, seed, folder)
    dataset = make_dataset(config)
    assert config.steps is not None
    factor = partial(lr_factor, config, total=config.steps)
    more: dict[str, Any] = {}
    pull = 0.9 / RANKS if config.pull is None else config.pull
    if trial.period is not None:
        more["period"] = lambda step: trial.period(factor(step))
    if trial.pull is not None:
        more["pull"] = lambda step: pull * trial.pull(factor(step))
    bench = Bench(config, RANKS, dataset, more, trial.make_center)
    bench.take_together(Event(0.0, 0, "together", step) for step in range(config.steps))
    players = bench.players()
    replay(players, in_turn(players, bench.center))
    return bench.evaluate(dataset.test_x, dataset.test_y)[1]


def in_turn(players: Sequence[Player], center: LocalCenter) -> Iterator[Event]:
    """Yield endless events: each chain in turn takes a step and exchanges; it takes the result in a step later."""
    while True:
        for rank, player in enumerate(players):
            if hasattr(center, "turn_of"):
                center.turn_of = rank
            kinds = ("step", "stage", "read", "add", "apply") if player.chain.exchanges_next else ("step",)
            yield from (Event(0.0, rank, kind, player.chain.local_step) for kind in kinds)


def main(argv: Sequence[str]) -> int:
    """Run all trials and print their table; return the exit code."""
    parser = Parser(prog="trials.py", description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", help="directory with the data's files")
    parser.add_argument("out", nargs="?", help="CSV file for the error of every run")
    try:
        args = parser.parse_args(argv)
        configure(TRIALS[0], 0, args.data_dir)
        if args.out:
            open(args.out, "a").close()  # fail before minutes of work if it cannot be written
    except (InputError, OSError) as error:
        print(f"trials.py: {error}", file=sys.stderr)
        return 2
    rows = [(trial, seed) for trial in TRIALS for seed in range(SEEDS)]
    with ProcessPoolExecutor(2) as pool:
        jobs = [pool.submit(run, trial, seed, args.data_dir) for trial, seed in rows]
        print("| trial | error % |\n| --- | --- |")
        for first, trial in enumerate(TRIALS):
            errors = [job.result() for job in jobs[first * SEEDS : (first + 1) * SEEDS]]
            spread = statistics.stdev(errors) / math.sqrt(len(errors))
            print(f"| {trial.name} | {statistics.fmean(errors):.2f} ± {spread:.2f} |", flush=True)
    if args.out:
        lines = [[trial.name, seed, f"{job.result():.2f}"] for (trial, seed), job in zip(rows, jobs, strict=True)]
        with open(args.out, "w", newline="") as file:
            csv.writer(file).writerows([["trial", "seed", "error"], *lines])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
