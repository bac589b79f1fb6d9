"""Tries changes that no option of `lsam train` makes, and prints a table: five minutes on two cores.

    python jobs/experiments/trials.py DATA_DIR [OUT.csv]     # Fashion-MNIST's four files

Four chains in one process share a center in memory. The chain of each step is drawn at random, which gives the order of
a real job without its timing. Data, model and steps are those of knobs.yaml.
"""

import copy
import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.optim import SAM, LocalCenter
from lsam_hpc.optim.lsam import LocalLSAM
from lsam_hpc.options.schedules import ScalarOrSchedule
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import lr_factor, make_base, make_dataset, make_model, sampler_options
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.dataset import Dataset
from lsam_hpc.train.evaluation import evaluate
from lsam_hpc.util.arguments import Parser

DATA, SUBSET, EPOCHS, SEEDS = "fashion-mnist", 6000, 60, 3
CHAINS, IMAGES = 4, 512  # images in a step of all chains together
SLOW = (1.0, 1.0, 1.0, 1 / 3)  # relative rates of the chains' steps
RADIUS = 0.2  # rho of SAM, whose ascent uses all these images
AVERAGED = 0.25  # last fraction of the steps, whose centers are averaged


@dataclass(frozen=True)
class Trial:
    """A variant to try.

    Args:
        name: name in the table.
        options: options of `lsam train` that differ.
        pull: pull of the chains.
        synchronous: first fraction of the steps, which SAM takes with all chains' images.
        by_age: whether deltas are multiplied by chains / (1 + staleness).
        rates: relative rates of the chains' steps.
        average: whether the average of the last centers is tested instead of the last one.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    pull: ScalarOrSchedule = 0.9 / CHAINS
    synchronous: float = 0.0
    by_age: bool = False
    rates: tuple[float, ...] = (1.0,) * CHAINS
    average: bool = False


def ramp(first: float, last: float, step: int) -> float:
    """Return the pull after `step` steps of a chain, between `first` and `last`."""
    return first * (last / first) ** min(1.0, step * IMAGES / (EPOCHS * SUBSET))


RESTART = {"coupling": "restart"}
TRIALS = (
    Trial("SAM", synchronous=1.0),
    Trial("nothing turned"),
    Trial("synchronous for the first 10 %", synchronous=0.1),
    Trial("synchronous for the first 30 %", synchronous=0.3),
    Trial("average of the last quarter's centers", average=True),
    Trial("the same, lr 0.05 constant", {"lr": 0.05, "lr_schedule": "constant"}, average=True),
    Trial("pull 0.05", pull=0.05),
    Trial("pull 0.6", pull=0.6),
    Trial("pull from 0.05 to 0.6", pull=partial(ramp, 0.05, 0.6)),
    Trial("pull from 0.6 to 0.05", pull=partial(ramp, 0.6, 0.05)),
    Trial("period 1", {"period": 1}),
    Trial("kernel, stiffness 1", {"coupling": "kernel", "stiffness": 1.0}),
    Trial("lr 0.05", {"lr": 0.05}),
    Trial("lr 0.2", {"lr": 0.2}),
    Trial("a slow chain, elastic", rates=SLOW),
    Trial("a slow chain, restart", RESTART, rates=SLOW),
    Trial("a slow chain, restart, deltas over their staleness", RESTART, by_age=True, rates=SLOW),
    Trial("40 % wrong labels: SAM", {"label_noise": 0.4}, synchronous=1.0),
    Trial("40 % wrong labels: nothing turned", {"label_noise": 0.4}),
    Trial("right labels: SAM", {"label_noise": 0.0}, synchronous=1.0),
    Trial("right labels: nothing turned", {"label_noise": 0.0}),
)


class ByAge(LocalCenter):
    """A center that scales deltas down by their age; the caller sets `turn_of` to the chain whose turn it is.

    Source: Zhang et al. 2016, "Staleness-aware Async-SGD" (arXiv 1511.05950). Here a delta keeps its length if its
    staleness is the number of other chains.
    """

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__(start)
        self.turn_of, self._versions = 0, [0] * CHAINS

    def read(self, out: torch.Tensor) -> int:
        """Copy y, and store the version that this chain has read."""
        self._versions[self.turn_of] = super().read(out)
        return self._versions[self.turn_of]

    def add(self, delta: torch.Tensor) -> int:
        """Add a delta, scaled by its age."""
        return super().add(delta * (CHAINS / (1 + self.version - self._versions[self.turn_of])))


def configure(trial: Trial, seed: int, folder: str) -> TrainConfig:
    """Return the options of a trial's chains."""
    options = {"label_noise": 0.2, "lr": 0.1, "rho": 0.1} | trial.options
    return TrainConfig(
        data=DATA, data_dir=folder, model="mlp", subset=SUBSET, seed=seed, batch_size=IMAGES // CHAINS, **options
    )


def run(trial: Trial, seed: int, folder: str) -> float:
    """Return the test error in % of one trial."""
    torch.set_num_threads(1)
    config = configure(trial, seed, folder)
    dataset = make_dataset(config)
    total = CHAINS * round(EPOCHS * len(dataset.train_y) / IMAGES)  # steps of all chains
    model = make_model(config, dataset)
    base = make_base(config, model)
    together = CHAINS * round(trial.synchronous * total / CHAINS)
    sam = SAM(base, rho=RADIUS)
    images = Batches(dataset.train_x, dataset.train_y, IMAGES, 1000 + seed)
    for step in range(0, together, CHAINS):
        one_step(sam, model, images, config, step=step, total=total)
    centers: list[torch.Tensor] = []
    if together < total:
        center = (ByAge if trial.by_age else LocalCenter)(parameters_to_vector(model.parameters()))
        chains = list(make_chains(config, dataset, model, base, center=center, pull=trial.pull))
        draw = np.random.default_rng(seed)
        rates = np.array(trial.rates) / sum(trial.rates)
        for step in range(together, total):
            turn = int(draw.choice(CHAINS, p=rates))
            if isinstance(center, ByAge):
                center.turn_of = turn
            one_step(*chains[turn], config, step=step, total=total)
            if trial.average and step >= (1 - AVERAGED) * total and step % CHAINS == 0:
                centers.append(center.vector.clone())
        vector_to_parameters(torch.stack(centers).mean(0) if centers else center.vector, model.parameters())
    return evaluate(model, dataset.test_x, dataset.test_y)[1]


def make_chains(
    config: TrainConfig,
    dataset: Dataset,
    model: nn.Module,
    base: Optimizer,
    *,
    center: LocalCenter,
    pull: ScalarOrSchedule,
) -> Iterator[tuple[LocalLSAM, nn.Module, Batches]]:
    """Yield chains that all start from the model, with the momentum of its optimizer."""
    for index in range(CHAINS):
        replica = copy.deepcopy(model)
        optimizer = make_base(config, replica)
        # Only the momentum, because the parameter groups hold SAM's rho.
        momentum = copy.deepcopy(base.state_dict()["state"])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": momentum})
        opt = LocalLSAM(optimizer, center, **{**sampler_options(config, replica, dataset, CHAINS), "pull": pull})
        yield opt, replica, Batches(dataset.train_x, dataset.train_y, config.batch_size, config.seed * CHAINS + index)


def one_step(opt: SAM, model: nn.Module, batches: Batches, config: TrainConfig, *, step: int, total: int) -> None:
    """Take a step as `lsam train` does."""
    x, y = next(batches)
    for group in opt.param_groups:
        group["lr"] = config.lr * lr_factor(config, step, total)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    opt.step(closure)


def main(argv: Sequence[str]) -> int:
    """Run all trials and print their table; return the exit code."""
    parser = Parser(prog="trials.py", description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", help="directory with the data's files")
    parser.add_argument("out", nargs="?", help="CSV file for the error of every run")
    try:
        args = parser.parse_args(argv)
        make_dataset(configure(TRIALS[0], 0, args.data_dir))
        if args.out:
            open(args.out, "a").close()  # fail before minutes of work if it cannot be written
    except (InputError, OSError) as error:
        print(f"trials.py: {error}", file=sys.stderr)
        return 2
    rows = [(trial, seed) for trial in TRIALS for seed in range(SEEDS)]
    with ProcessPoolExecutor(2) as pool:
        jobs = [pool.submit(run, trial, seed, args.data_dir) for trial, seed in rows]
        print("| trial | test error % |\n| --- | --- |")
        for first, trial in enumerate(TRIALS):
            errors = [job.result() for job in jobs[first * SEEDS : (first + 1) * SEEDS]]
            spread = statistics.stdev(errors) / len(errors) ** 0.5
            print(f"| {trial.name} | {statistics.fmean(errors):.2f} ± {spread:.2f} |", flush=True)
    if args.out:
        lines = [[trial.name, seed, f"{job.result():.2f}"] for (trial, seed), job in zip(rows, jobs, strict=True)]
        with open(args.out, "w", newline="") as file:
            csv.writer(file).writerows([["trial", "seed", "test_error"], *lines])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
